"""This room decides which experts answer a request. PURE; it may import `fleet.table`, `gate` and `planning`."""
