"""Items that occur together with those of the history, the newest weighing most."""
