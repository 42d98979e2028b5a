"""Whether the engine can use this host's GPU, and if not, why and what to do about it; imports only what is common."""
