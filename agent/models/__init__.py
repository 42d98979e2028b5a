"""The model files of this host; may import `settings`, `energy` and `engine.protocol` and `engine.parts`."""
