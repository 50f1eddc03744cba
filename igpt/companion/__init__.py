"""The machinery around the notebooks: what is declared, planned, run, submitted, reported and timed.

The science is beside this package, and knows nothing of it.
"""
