"""The doors to llama.cpp, and what of a model fits into memory; may import `decoding`."""
