"""A model as a folder of files: written, read, checked, and nothing of how it answers."""
