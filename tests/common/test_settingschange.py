"""What may change in a running daemon's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe2.agent import reloading as of_agent
from moe2.agent.settings import AgentSettings
from moe2.common.config import Settings
from moe2.common.settingschange import Change, changes, keys, merged
from moe2.coordinator import reloading as of_coordinator
from moe2.coordinator.settings import CoordinatorSettings

LIVE = of_coordinator.LIVE


def settings(**sections: Any) -> CoordinatorSettings:
    return CoordinatorSettings.model_validate(sections)


@pytest.mark.parametrize(
    ("kind", "sets"), [(AgentSettings, of_agent), (CoordinatorSettings, of_coordinator)], ids=["agent", "coordinator"]
)
def test_every_setting_is_classified_once(kind: type[Settings], sets: Any) -> None:
    """A new setting is put into LIVE or NEEDS_RESTART of the daemon's `reloading.py`."""
    known = keys(kind)
    assert len(known) == len(set(known))
    assert set(known) == sets.LIVE | sets.NEEDS_RESTART
    assert not sets.LIVE & sets.NEEDS_RESTART


def test_the_keys_of_tables_are_dotted_paths() -> None:
    """A table that may be left out is a key itself; a list of tables, or named tables, are one."""
    found = keys(CoordinatorSettings)
    assert {"log.level", "api.tls", "api.tls.key", "selection.categories"} <= set(found)
    assert "api" not in found
    assert "models" in keys(AgentSettings)


def test_equal_settings_have_no_changes() -> None:
    """Neither kind."""
    found = changes(settings(), settings(), LIVE)
    assert (found.applied, found.needs_restart) == ((), ())


def test_changes_are_told_apart() -> None:
    """With the old value and the new one."""
    new = settings(log={"level": "debug"}, api={"port": 9, "max_active_requests": 3})
    found = changes(settings(), new, LIVE)
    assert set(found.applied) == {Change("log.level", "info", "debug"), Change("api.max_active_requests", 1024, 3)}
    assert found.needs_restart == (Change("api.port", 8080, 9),)


def test_only_what_is_live_is_merged() -> None:
    """The rest stays as the daemon runs with it; merging again changes nothing more."""
    old, new = settings(), settings(log={"level": "debug"}, api={"port": 9, "request_timeout_s": 3})
    both = merged(old, new, LIVE)
    assert (both.log.level, both.api.port, both.api.request_timeout_s) == ("debug", 8080, 3.0)
    assert merged(both, new, LIVE) == both
    assert [change.key for change in changes(both, new, LIVE).needs_restart] == ["api.port"]


TLS = {"certificate": "c", "key": "k"}


@pytest.mark.parametrize(("before", "after"), [(None, TLS), (TLS, None)])
def test_tls_is_not_switched_on_or_off_while_running(before: Any, after: Any) -> None:
    """The table as a whole is named, not the keys in it."""
    old, new = settings(api={"tls": before}), settings(api={"tls": after})
    assert [change.key for change in changes(old, new, LIVE).needs_restart] == ["api.tls"]
    assert merged(old, new, LIVE) == old


def test_a_table_that_stays_is_compared_key_by_key() -> None:
    """Of a key that can change and one that cannot, each is told as what it is."""
    old = settings(api={"tls": TLS})
    new = settings(api={"tls": {"certificate": "c2", "key": "k", "client_ca": "ca"}})
    live = LIVE - {"api.tls.client_ca"}
    found = changes(old, new, live)
    assert [change.key for change in found.applied] == ["api.tls.certificate"]
    assert [change.key for change in found.needs_restart] == ["api.tls.client_ca"]
    tls = merged(old, new, live).api.tls
    assert tls is not None
    assert (tls.certificate, tls.client_ca) == (Path("c2"), None)


def test_named_tables_change_as_one() -> None:
    """Of budgets by category."""
    new = settings(selection={"categories": {"default": {"latency_budget_s": 1.0}}})
    assert [change.key for change in changes(settings(), new, LIVE).applied] == ["selection.categories"]
    assert merged(settings(), new, LIVE) == new
