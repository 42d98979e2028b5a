"""The OpenAPI document of all routes, and its own route; may import the whole of `http` but the boundary."""
