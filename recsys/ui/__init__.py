"""The local dashboard: pages that are rendered here, of runs and models that others made. It changes nothing."""
