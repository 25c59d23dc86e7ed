"""Items that co-occur with those of the history, with most weight on the newest."""
