"""Answering: one recommender, used by MLflow's pyfunc and by batch recommendation alike; knows no training."""
