"""The promotion gate: whether a version may replace another one, by paired tests and drift."""
