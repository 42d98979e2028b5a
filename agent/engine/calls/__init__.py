"""Tool calls in whatever form a model writes them, and their translation to one form; may import only `protocol`."""
