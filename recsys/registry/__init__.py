"""MLflow tracking and the model registry: a trained model is logged, registered, promoted and
pulled.
"""
