"""This room compares the gate with simpler ways to choose, on held-out outcomes; imports what training may."""
