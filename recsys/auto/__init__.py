"""``model: auto``: granularities that a prepared dataset supports, and settings that work well on
similar data.
"""
