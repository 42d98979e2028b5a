"""What may change in a running daemon's settings."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from moe2.common.config import LIVE, Settings
from moe2.common.reload import Change, changes, merged
from moe2.coordinator.settings import CoordinatorSettings


class Inner(Settings):
    live: Annotated[str, LIVE] = "a"
    fixed: str | None = None


class Outer(Settings):
    table: Inner | None = None


def settings(**sections: Any) -> CoordinatorSettings:
    return CoordinatorSettings.model_validate(sections)


def test_equal_settings_have_no_changes() -> None:
    """Neither kind."""
    found = changes(settings(), settings())
    assert (found.applied, found.needs_restart) == ((), ())


def test_changes_are_told_apart() -> None:
    """With the old value and the new one."""
    new = settings(log={"level": "debug"}, api={"port": 9, "max_active_requests": 3})
    found = changes(settings(), new)
    assert set(found.applied) == {Change("log.level", "info", "debug"), Change("api.max_active_requests", 1024, 3)}
    assert found.needs_restart == (Change("api.port", 8080, 9),)


def test_only_what_is_live_is_merged() -> None:
    """The rest stays as the daemon runs with it; merging again changes nothing more."""
    old, new = settings(), settings(log={"level": "debug"}, api={"port": 9, "request_timeout_s": 3})
    both = merged(old, new)
    assert (both.log.level, both.api.port, both.api.request_timeout_s) == ("debug", 8080, 3.0)
    assert merged(both, new) == both
    assert [change.key for change in changes(both, new).needs_restart] == ["api.port"]


TLS = {"certificate": "c", "key": "k"}


@pytest.mark.parametrize(("before", "after"), [(None, TLS), (TLS, None)])
def test_tls_is_not_switched_on_or_off_while_running(before: Any, after: Any) -> None:
    """The table as a whole is named, not the keys in it."""
    old, new = settings(api={"tls": before}), settings(api={"tls": after})
    assert [change.key for change in changes(old, new).needs_restart] == ["api.tls"]
    assert merged(old, new) == old


def test_a_table_that_stays_is_compared_key_by_key() -> None:
    """Of a key that can change and one that cannot, each is told as what it is."""
    old = Outer(table=Inner())
    new = Outer(table=Inner(live="b", fixed="x"))
    found = changes(old, new)
    assert [change.key for change in found.applied] == ["table.live"]
    assert [change.key for change in found.needs_restart] == ["table.fixed"]
    assert merged(old, new).table == Inner(live="b")


def test_named_tables_change_as_one() -> None:
    """Of budgets by category."""
    new = settings(selection={"categories": {"default": {"latency_budget_s": 1.0}}})
    assert [change.key for change in changes(settings(), new).applied] == ["selection.categories"]
    assert merged(settings(), new) == new
