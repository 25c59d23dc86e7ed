"""Retrieval of the best items for a user vector under the rules of a request: index, filters,
attributes.
"""
