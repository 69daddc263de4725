"""Metrics for the `evaluate` library, a folder each, which is also a Space: NAME.py, README.md, app.py, requirements.txt.

`evaluate.load` copies NAME.py away from here, so it imports nothing of this package; the suite imports its functions.
"""
