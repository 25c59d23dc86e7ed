"""The taste of friends: graph convolution or counts over friendships."""
