"""The decoding loop and its jobs, without llama.cpp, pipes or a clock; may import `prompt` and `speculation`."""
