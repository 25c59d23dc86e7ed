"""Repeat consumption: items of the history that a user will have again."""
