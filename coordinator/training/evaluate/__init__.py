"""Comparing the gate with simpler choices on held-out outcomes."""
