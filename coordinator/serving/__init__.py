"""One request from admission to its receipt; may import `ledger`, `keys`, `choosing` and what is below."""
