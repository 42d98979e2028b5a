"""Tests of moe2.agent.engine.speculation."""
