"""The best items for a vector under the rules of a request: index, filters, item attributes."""
