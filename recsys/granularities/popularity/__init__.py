"""Popularity at the time of the request."""
