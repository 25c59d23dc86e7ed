"""Facts about items, trained on or counted."""
