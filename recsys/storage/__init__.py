"""Places of any kind as one: local folders, ``s3://``, ``gs://`` and whatever else Arrow opens."""
