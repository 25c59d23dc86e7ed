"""The stage ``prepare``: from the tables of a source to the prepared dataset. Of the data packages
only this one imports Ray.
"""
