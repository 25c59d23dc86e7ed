"""A model for programs without this package: ONNX, FAISS and Parquet, each tested against PyTorch before it is left."""
