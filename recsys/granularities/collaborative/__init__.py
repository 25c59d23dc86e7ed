"""The user–item graph: light graph convolution."""
