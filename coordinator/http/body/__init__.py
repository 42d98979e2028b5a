"""Request bodies as typed values, one source for parser, errors, OpenAPI; imports `errors`, `choosing`, `serving`."""
