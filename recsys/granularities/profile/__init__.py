"""Attributes of users and items, by training or by counting."""
