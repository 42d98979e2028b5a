"""The form that an answer must have: read, bounded, compiled and followed token by token."""
