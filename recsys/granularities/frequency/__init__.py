"""The items that a user had most often, weighted by recency."""
