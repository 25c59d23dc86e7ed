"""What the users of the nearest taste chose."""
