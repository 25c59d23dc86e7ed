"""A ridge regression of a user's items on those of the friends."""
