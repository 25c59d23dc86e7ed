"""The front door for people who write Python: data, training and models as objects, by the stages of the command line.

``import recsys`` names all of it; see :mod:`recsys`.
"""
