"""Interest drift: how a user's interest changes over the history."""
