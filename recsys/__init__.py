"""Multigrain: recommenders that see a user at several granularities, trained data-parallel on Ray."""

__version__ = "0.1.0"
