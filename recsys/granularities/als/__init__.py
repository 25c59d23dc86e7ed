"""Implicit alternating least squares."""
