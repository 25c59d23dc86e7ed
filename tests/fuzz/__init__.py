"""Fuzzing targets: each takes any bytes, and fails if the product neither reads them nor refuses
them clearly.

`python -m tests.fuzz TARGET [-runs=20000] [-max_total_time=60]` runs one under atheris (``pip
install -e '.[fuzz]'``); `tests/stories/test_fuzz.py` runs each for a short time and has a
regression test for each finding.
"""
