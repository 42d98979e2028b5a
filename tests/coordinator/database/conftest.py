"""A session with a database of its own for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from moe2.coordinator.database.postgresql import Session


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    """A session with a new database."""
    opened = Session(url, name="test")
    yield opened
    opened.close()


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[str], Session]]:
    """Opens further sessions with the new database, by name."""
    sessions: list[Session] = []

    def open_(name: str) -> Session:
        sessions.append(Session(url, name=name))
        return sessions[-1]

    yield open_
    for one in sessions:
        one.close()
