"""The API listener: routes, the shapes in which they answer, who may use them; may import `observing` and below."""
