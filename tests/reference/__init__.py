"""The plain textbook form of every training step: the oracle of the tests and the base line of ``make perf``.

Written for reading, from the papers' formulas: loops over views, one picture at a time, no mixed precision. It shares
no code with ``methods``, so that an error there is not an error here; it works in float32 and in float64.
"""
