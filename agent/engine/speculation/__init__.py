"""Guesses of the tokens that come next, so that one step of the model yields several: what to guess, and how much."""
