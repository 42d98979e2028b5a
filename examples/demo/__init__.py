"""The demo: one coordinator and two agents with a real model, on this machine. `python -m examples.demo`."""
