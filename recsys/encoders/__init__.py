"""Pretrained models that turn texts and images into vectors."""
