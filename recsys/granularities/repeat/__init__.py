"""What a user had before and is about to have again."""
