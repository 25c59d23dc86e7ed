"""Fuzzing targets: each takes any bytes, and fails when the product answers them with anything but a clear refusal.

`python -m tests.fuzz TARGET [-runs=20000] [-max_total_time=60]` runs one under atheris (``pip install -e '.[fuzz]'``);
`tests/test_fuzz.py` runs each a little. What was found stays as a regression test there.
"""
