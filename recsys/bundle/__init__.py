"""The bundle: a model as a folder of files that are written, read and checked; no code that answers
requests.
"""
