"""Distance from items to the places of the history, and similarity in numbers such as a price."""
