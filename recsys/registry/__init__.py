"""Where a trained model goes: the bundle that is complete in itself, MLflow tracking and the model registry."""
