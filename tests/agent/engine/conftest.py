"""Fixtures of the engine's tests: one child that serves the real model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moe2.agent.engine.protocol import Loaded, ModelSpec
from tests.agent.engine.child import Child
from tests.agent.engine.submissions import CONTEXT_TOKENS
from tests.models import smollm2_path


@pytest.fixture(scope="package")
def child() -> Iterator[Child]:
    """One child with eight slots on the real model."""
    with Child() as started:
        spec = ModelSpec(path=str(smollm2_path()), slots=8, context_tokens=CONTEXT_TOKENS, threads=1)
        loaded = started.load_spec(spec)
        assert isinstance(loaded, Loaded), loaded
        yield started
