"""Comparisons of models on the same test users, or by the logs of a server."""
