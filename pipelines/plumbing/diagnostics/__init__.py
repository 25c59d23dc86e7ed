"""The checks of `recsys doctor`, by what they look at: installation, machine, storage, services."""
