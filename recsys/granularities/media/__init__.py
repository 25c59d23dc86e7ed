"""What items look or sound like."""
