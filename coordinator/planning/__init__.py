"""Coarse selection: the exact discrete monotonic optimizer. Pure: numpy arrays in, a certified answer out."""
