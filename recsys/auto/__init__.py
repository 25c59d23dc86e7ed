"""``model: auto``: which granularities a prepared dataset can feed, and settings that have proved good on such data."""
