"""The prepared dataset, its splits and its batches; nothing here imports Ray."""
