"""Similarity between item texts and the texts of the history."""
