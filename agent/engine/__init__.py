"""The engine: one llama.cpp child process per model, and the daemon's side of its pipes."""
