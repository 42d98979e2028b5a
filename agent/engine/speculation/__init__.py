"""Guesses of the tokens that come next, so that one step yields several: what to guess, how much. Imports no room."""
