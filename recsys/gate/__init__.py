"""Whether a version may replace another one: paired tests, drift, models of other datasets."""
