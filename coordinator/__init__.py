"""The coordinator: one OpenAI-compatible service over the fleet, with two-level expert selection."""
