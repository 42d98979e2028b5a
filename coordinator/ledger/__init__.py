"""What requests have cost: accounts, daily limits, the SQLite file; may import `keys`, `choosing` and what is below."""
