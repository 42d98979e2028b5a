"""Tests of what is shipped under examples/."""
