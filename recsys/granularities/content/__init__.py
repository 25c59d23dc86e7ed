"""How much items read like those of the history."""
