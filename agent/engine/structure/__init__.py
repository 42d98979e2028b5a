"""The form of an answer: read, bounded, compiled, followed token by token; may import `calls`, `prompt.request`."""
