"""This room compares the gate with simpler ways to choose an expert, on held-out outcomes."""
