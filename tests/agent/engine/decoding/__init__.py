"""Tests of moe2.agent.engine.structure."""
