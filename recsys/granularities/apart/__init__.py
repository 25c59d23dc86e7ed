"""A separately trained model as one member; :mod:`recsys.separate_model` computes its scores."""
