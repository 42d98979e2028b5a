"""This room trains and evaluates the gate offline. Nothing that serves imports it; it imports `gate` and `planning`."""
