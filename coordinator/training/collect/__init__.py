"""Asking a fleet a question set, to train the gate on what it answers."""
