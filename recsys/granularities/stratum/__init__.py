"""The group of like users that a user is in."""
