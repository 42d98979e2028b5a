"""Request bodies: parsed and checked into typed values, with one source for parser, errors and OpenAPI."""
