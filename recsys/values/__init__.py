"""Values as files and requests write them: cells, times, and ids that occur in several tables."""
