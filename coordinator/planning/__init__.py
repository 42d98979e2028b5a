"""The exact discrete monotonic optimizer; pure arrays; imports nothing of the coordinator."""
