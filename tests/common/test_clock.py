"""Clocks that cannot be right."""

from __future__ import annotations

import pytest

from moe2.common.clock import EARLIEST_UNIX_S, MAX_STEP_BACK_S, clock_warnings, is_clock_wrong, require_right_clock
from moe2.common.errors import Moe2Error


def test_a_clock_in_1970_is_a_named_warning() -> None:
    """It says what the clock says."""
    [warning] = clock_warnings(60.0)
    assert warning.code == "clock_wrong"
    assert "1970-01-01T00:01:00Z" in warning.message
    assert clock_warnings(EARLIEST_UNIX_S) == ()


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
