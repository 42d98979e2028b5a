"""The API's several shapes: each asks for one request, and writes its answer as clients expect; may import `body`."""
