"""Runnable stages. A stage picks parts of :mod:`recsys`, reads artefacts of the run folder and
writes others.
"""
