"""The taste of friends: graph convolution over friendships."""
