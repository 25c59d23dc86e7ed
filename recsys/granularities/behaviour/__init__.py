"""The text of the items in a history, pooled by attention."""
