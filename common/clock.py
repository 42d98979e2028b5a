"""Whether the system's clock can be right. PURE.

A board without a battery starts with its clock in 1970, or where its system image was made, until the network has told
it the time. What has expired must not be valid again meanwhile.
"""

from __future__ import annotations

from moe2.common.errors import Moe2Error
from moe2.common.health import HealthWarning, Severity
from moe2.common.terminal.figures import moment

EARLIEST_UNIX_S = 1_735_689_600.0
"""2025-01-01: every release of moe2 is younger, so that it cannot run earlier. A constant, to be raised with releases:
a build made anew stays the same, and the installed files' own dates come from the very clock that is in doubt."""
MAX_STEP_BACK_S = 3600.0
"""How far a clock that is right may be behind a moment that this host has written down before."""

_SET_IT = "Let it take the time from the network (`timedatectl set-ntp true`), or set it (`timedatectl set-time`)."


def is_clock_wrong(now_unix_s: float, *, written_unix_s: float = 0.0) -> bool:
    """True where `now_unix_s` cannot be the time.

    written_unix_s: a moment that has passed for certain, such as when what is to expire was made.
    """
    return now_unix_s < max(EARLIEST_UNIX_S, written_unix_s - MAX_STEP_BACK_S)


def require_right_clock(now_unix_s: float) -> None:
    """Raises `Moe2Error` where the clock is wrong: what is to expire could not be dated."""
    if is_clock_wrong(now_unix_s):
        raise Moe2Error(
            f"This host's clock says {moment(now_unix_s)}, so that nobody knows when it would expire.", remedy=_SET_IT
        )


def clock_warnings(now_unix_s: float) -> tuple[HealthWarning, ...]:
    """Returns the warning that this host's clock is wrong, where it must be."""
    if not is_clock_wrong(now_unix_s):
        return ()
    return (
        HealthWarning(
            code="clock_wrong",
            severity=Severity.DEGRADED,
            message=f"This host's clock says {moment(now_unix_s)}, when moe2 was not made yet. API keys and "
            "enrolment tokens that expire are refused, and certificates look as if they were not valid yet.",
            remedy=_SET_IT,
        ),
    )
