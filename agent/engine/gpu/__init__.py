"""Whether this host's GPU can be used by the engine, and if not, why and what to do about it."""
