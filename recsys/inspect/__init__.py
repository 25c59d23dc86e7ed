"""What files contain, inferred from a sample of each: forms, kinds of columns, tables and their
ids, a split.

The steps::

    arguments → files (input_files.py) → form and sample (forms.py, samples.py)
              → kinds of columns (columns.py)
              → which table holds the events, and what the others are, by ids in common
                (sampled_tables.py, roles.py)
              → statistics of the events: repeats, times, types (event_statistics.py)
              → a configuration with reasons (proposal.py)
"""
