"""Servers that follow the registry: new versions replace the models that they answer with."""
