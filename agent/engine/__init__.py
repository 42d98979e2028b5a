"""The engine: one child process of llama.cpp per model, and the daemon's side of its pipes; imports what is common."""
