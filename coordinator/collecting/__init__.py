"""Outcomes from the live fleet: a question set asked of every expert, scored, and written for `train-gate`."""
