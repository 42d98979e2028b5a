"""Fixtures of the link's tests: one session of each side."""

from __future__ import annotations

import pytest

from moe2.common.link.session import Session
from tests.common.link.sessions import agent_session, coordinator_session, open_agent, open_coordinator


@pytest.fixture(params=[open_agent, open_coordinator], ids=["agent", "coordinator"])
def opened(request: pytest.FixtureRequest) -> Session:
    session: Session = request.param()
    return session


@pytest.fixture(params=[agent_session, coordinator_session], ids=["agent", "coordinator"])
def shaking(request: pytest.FixtureRequest) -> Session:
    session: Session = request.param()
    session.take_frames()
    return session
