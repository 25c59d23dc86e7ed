"""Exact full ranking, metrics, baselines, intervals, segments and the report. Knows no Ray and no
model class.
"""
