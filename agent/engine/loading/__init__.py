"""What is done around a model that is being loaded: draft model, defaults, GPU, first run; may import `llama`."""
