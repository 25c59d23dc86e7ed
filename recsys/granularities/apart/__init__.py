"""A model trained apart, as one member beside the others; see :mod:`recsys.apart` for what answers."""
