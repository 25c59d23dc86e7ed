"""How a user's interest moves: the order and times of the history."""
