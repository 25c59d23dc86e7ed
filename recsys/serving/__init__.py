"""Serving: one recommender for the server, MLflow's pyfunc and batch recommendation; contains no
training.
"""
