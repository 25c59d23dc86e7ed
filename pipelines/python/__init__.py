"""The Python API: data, training and models as objects, implemented with the stages of the command
line.

``import recsys`` exports all of it; see :mod:`recsys`.
"""
