"""Attributes of users and items, trained on or counted."""
