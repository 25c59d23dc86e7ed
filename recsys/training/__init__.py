"""Training: a loop that knows no Ray (:mod:`~recsys.training.loop`) and Ray Train around it."""
