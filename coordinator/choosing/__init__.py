"""Which experts answer a request; pure; may import `fleet.table`, `gate` and `planning`."""
