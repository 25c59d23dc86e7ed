"""Single values as files write them: cells, times, moments of the day, identifiers that overlap."""
