"""Clocks that cannot be right."""

from __future__ import annotations

import pytest

from moe2.common.clock import (
    EARLIEST_UNIX_S,
    LATEST_UNIX_S,
    MAX_AWAY_S,
    MAX_STEP_BACK_S,
    TRUST_S,
    SteadyClock,
    clock_warnings,
    is_clock_wrong,
    require_right_clock,
)
from moe2.common.errors import Moe2Error


def test_a_clock_in_1970_is_a_named_warning() -> None:
    """It says what the clock says."""
    [warning] = clock_warnings(60.0, effects="Keys are refused.")
    assert warning.code == "clock_wrong"
    assert "1970-01-01T00:01:00Z" in warning.message
    assert warning.message.endswith("Keys are refused.")
    assert clock_warnings(EARLIEST_UNIX_S, effects="Keys are refused.") == ()


def test_a_moment_that_was_written_down_has_passed() -> None:
    """A clock may be set back a little, as time servers do."""
    written = EARLIEST_UNIX_S + 1e6
    assert is_clock_wrong(written - MAX_STEP_BACK_S - 1, written_unix_s=written)
    assert not is_clock_wrong(written - MAX_STEP_BACK_S, written_unix_s=written)


def test_nothing_that_expires_is_made_by_a_wrong_clock() -> None:
    """The error says what to do."""
    with pytest.raises(Moe2Error, match="timedatectl"):
        require_right_clock(60.0)
    require_right_clock(EARLIEST_UNIX_S)


def test_a_clock_beyond_every_release_is_a_named_warning() -> None:
    """A battery that has died may leave any year."""
    [warning] = clock_warnings(4_070_908_800.0, effects="Keys are refused.")
    assert warning.code == "clock_wrong"
    assert "2099-01-01" in warning.message
    assert clock_warnings(LATEST_UNIX_S - 1, effects="Keys are refused.") == ()


NOW_UNIX_S = EARLIEST_UNIX_S + 1e7


@pytest.mark.parametrize(
    ("written_unix_s", "is_trusted"),
    [
        (None, False),
        (NOW_UNIX_S, False),
        (NOW_UNIX_S - TRUST_S + 1, False),
        (NOW_UNIX_S - TRUST_S, True),
        (NOW_UNIX_S - TRUST_S - MAX_AWAY_S, True),
        (NOW_UNIX_S - TRUST_S - MAX_AWAY_S - 1, False),
        (NOW_UNIX_S + 1, False),
    ],
)
def test_a_clock_is_trusted_that_goes_on_where_it_was(written_unix_s: float | None, is_trusted: bool) -> None:
    """Where it does not, it has to go on evenly for a day."""
    clock = SteadyClock(written_unix_s)
    assert clock.is_trusted(NOW_UNIX_S, 5.0) is is_trusted
    assert clock.is_trusted(NOW_UNIX_S + TRUST_S - 1, 5.0 + TRUST_S - 1) is is_trusted
    assert clock.is_trusted(NOW_UNIX_S + TRUST_S, 5.0 + TRUST_S)


@pytest.mark.parametrize("step_s", [MAX_STEP_BACK_S + 1, -MAX_STEP_BACK_S - 1])
def test_a_clock_that_jumps_is_not_trusted_for_a_day(step_s: float) -> None:
    """A step of an hour is none: time servers make such."""
    clock = SteadyClock(NOW_UNIX_S - TRUST_S)
    assert clock.is_trusted(NOW_UNIX_S, 0.0)
    assert clock.is_trusted(NOW_UNIX_S + MAX_STEP_BACK_S, 0.0)
    assert not clock.is_trusted(NOW_UNIX_S + MAX_STEP_BACK_S + step_s, 0.0)
    assert not clock.is_trusted(NOW_UNIX_S + MAX_STEP_BACK_S + step_s + TRUST_S - 1, TRUST_S - 1)
    assert clock.is_trusted(NOW_UNIX_S + MAX_STEP_BACK_S + step_s + TRUST_S, TRUST_S)


def test_a_clock_that_cannot_be_right_is_never_trusted() -> None:
    """However long it goes on."""
    clock = SteadyClock(None)
    assert not clock.is_trusted(60.0, 0.0)
    assert not clock.is_trusted(60.0 + 10 * TRUST_S, 10 * TRUST_S)
