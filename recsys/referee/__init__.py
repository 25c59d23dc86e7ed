"""The referee: evaluation protocols as files for any library, and the scores of the libraries'
lists.
"""
