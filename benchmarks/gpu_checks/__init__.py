"""The questions of ``python -m benchmarks.gpu --all``, one function for each.

``table`` lists them with their shares of the time and runs them; ``setting`` has what they share;
``dataset`` writes the generated data that they train on.
"""
