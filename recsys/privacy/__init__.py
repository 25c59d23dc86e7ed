"""Proving that a user is forgotten: what to look for, where, and a signed list of what was found."""
