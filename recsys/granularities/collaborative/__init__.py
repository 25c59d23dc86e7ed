"""The graph of users and items: light graph convolution."""
