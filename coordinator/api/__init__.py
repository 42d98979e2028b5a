"""The app-facing HTTP API: OpenAI's routes, moe2's own routes, health."""
