"""Runnable examples and the shipped configurations."""
