"""Metrics for the `evaluate` library. Each folder is a Space: NAME.py, README.md, app.py, requirements.txt.

`evaluate.load` and Spaces take NAME.py away from here, so it imports nothing of this package; the suite imports its
functions, so that every formula stands in one place.
"""
