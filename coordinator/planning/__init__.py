"""This room is the exact discrete monotonic optimizer. PURE, on arrays; it imports nothing else of the coordinator."""
