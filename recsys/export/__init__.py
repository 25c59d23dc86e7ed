"""Export of a model for programs without this package: ONNX, FAISS and Parquet, tested against
PyTorch.
"""
