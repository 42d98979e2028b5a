"""Training and judging the gate, offline; may import `gate` and `planning`; nothing that serves imports it."""
