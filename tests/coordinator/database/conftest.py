"""One server for all tests of the database, and a database for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from moe2.coordinator.database.postgresql import Session
from tests.fakes.postgres import Postgres, postgres


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A server that every test leaves running."""
    with postgres() as running:
        yield running


@pytest.fixture
def url(server: Postgres) -> str:
    """The address of a new database with the tables of this release."""
    return server.new_tables()


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
