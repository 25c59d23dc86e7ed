"""What many chose lately, at the moment of asking."""
