"""The time of the request: hour, day of the week, and context."""
