"""The steps of ``recsys update``: the new events, and the weights that it starts from."""
