"""The API listener: routes, who may use them, and what goes over the wire; may import `observing` and what is below."""
