"""The jobs of this host: a pure core, its events and effects; may import `learning`, `settings`, `engine.protocol`."""
