"""How near items are to where a user was, and how alike in numbers such as a price."""
