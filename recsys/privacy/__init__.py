"""Prove that a user was deleted: what to search for, where, and a signed list of the results."""
