"""What the command line does before a verb starts: help, dry runs, checks of a configuration."""
