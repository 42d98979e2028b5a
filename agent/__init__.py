"""The agent: serves quantized GGUF models on one host and measures what they cost."""
