"""What a user had most often, lately."""
