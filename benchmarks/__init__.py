"""One question a file; each is a command that prints one line of JSON, and runs its peer in the same run."""
