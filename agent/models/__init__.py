"""The model files of this host; may import `settings`, `energy`, and `llama` and `protocol` of the engine."""
