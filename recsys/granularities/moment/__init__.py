"""What is chosen at such an hour, on such a day of the week, in such a context."""
