"""Real clients, installed from PyPI and npm, against a real fleet; and the page that says what works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.catalog import CHECKS, CLIENTS
from tests.clients.environments import DRIVERS
from tests.clients.table import expected, found, written
from tests.clients.trial import clients_fleet, tried

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def test_the_page_has_the_table() -> None:
    """A row for each client, with the version that is tried; what is not tried with it is not promised."""
    assert written(map(expected, CLIENTS)) in PAGE.read_text(encoding="utf-8")


def test_the_drivers_and_the_catalog_agree() -> None:
    """Each driver belongs to a client, and tries what the catalog says."""
    named = {client.driver for client in CLIENTS}
    assert {path.name for path in DRIVERS.iterdir() if path.is_file()} == {*named, "harness.py", "harness.mjs"}
    for client in CLIENTS:
        source = (DRIVERS / client.driver).read_text(encoding="utf-8")
        said = {check for check in CHECKS if f'"{check}": ' in source or f"\n  {check}: async" in source}
        assert said == set(client.checks), client.name


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_client_works_as_the_page_says(tmp_path: Path) -> None:
    """Chats, streams, tools, structured answers, responses, vectors and errors, each through the client's own code."""
    async with clients_fleet(tmp_path) as running:
        trials = await tried(running, CLIENTS)
    missing = {client.name: trial.unavailable for client, trial in trials.items() if trial.unavailable is not None}
    for client, trial in trials.items():
        if trial.unavailable is None:
            assert found(client, trial) == expected(client)
    if missing:
        pytest.skip("; ".join(f"{name}: {why}" for name, why in missing.items()))
