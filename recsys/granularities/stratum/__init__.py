"""The user cluster that a user belongs to."""
