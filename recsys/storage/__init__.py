"""Local folders and remote storage (``s3://``, ``gs://``) behind one interface, with locks and
mirrors.
"""
