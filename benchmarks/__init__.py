"""Benchmarks: one question per file. Each is a command that prints one line of JSON and runs its
peer in the same run."""
