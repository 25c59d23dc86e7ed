"""The steps of ``recsys forget``."""
