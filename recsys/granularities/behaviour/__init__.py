"""The text of what a user chose, attention-pooled."""
