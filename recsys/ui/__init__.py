"""The local dashboard: read-only pages about existing runs and models, rendered on the server."""
