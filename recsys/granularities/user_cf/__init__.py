"""What the users with the most similar taste chose."""
