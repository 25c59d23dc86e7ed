"""A separately trained model as one member; :mod:`recsys.apart` computes its scores."""
