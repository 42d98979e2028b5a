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
LATEST_UNIX_S = 2_524_608_000.0
"""2050-01-01: no release of moe2 runs that long. A clock whose battery has died may say any year."""
MAX_STEP_BACK_S = 3600.0
"""How far a clock that is right may be behind a moment that this host has written down before."""
MAX_AWAY_S = 31 * 86_400.0
"""What is older says nothing of the clock: it may have jumped since."""
TRUST_S = 86_400.0
"""The time in which somebody notices, or the network mends, a clock that is wrong."""

_SET_IT = "Let it take the time from the network (`timedatectl set-ntp true`), or set it (`timedatectl set-time`)."


def is_clock_wrong(now_unix_s: float, *, written_unix_s: float = 0.0) -> bool:
    """True where `now_unix_s` cannot be the time.

    written_unix_s: a moment that has passed for certain, such as when what is to expire was made.
    """
    return now_unix_s < max(EARLIEST_UNIX_S, written_unix_s - MAX_STEP_BACK_S) or now_unix_s >= LATEST_UNIX_S


def require_right_clock(now_unix_s: float) -> None:
    """Raises `Moe2Error` where the clock is wrong: what is to expire could not be dated."""
    if is_clock_wrong(now_unix_s):
        raise Moe2Error(
            f"This host's clock says {moment(now_unix_s)}, so that nobody knows when it would expire.", remedy=_SET_IT
        )


def clock_warnings(now_unix_s: float, *, effects: str) -> tuple[HealthWarning, ...]:
    """Returns the warning that this host's clock is wrong, where it must be. effects: what that has, in a sentence."""
    if not is_clock_wrong(now_unix_s):
        return ()
    return (
        HealthWarning(
            code="clock_wrong",
            severity=Severity.DEGRADED,
            message=f"This host's clock says {moment(now_unix_s)}, which cannot be. {effects}",
            remedy=_SET_IT,
        ),
    )


class SteadyClock:
    """Whether the system's clock can be trusted so far that what is too old may be deleted.

    It must be possible, and have gone on evenly for `TRUST_S`: by what was written before the start, or since then.
    written_unix_s: the earliest of the moments that were written down in the last `MAX_AWAY_S`; None for none.
    """

    def __init__(self, written_unix_s: float | None) -> None:
        self._written_unix_s = written_unix_s
        self._ahead_s: float | None = None
        self._trusted_from_s = 0.0

    def is_trusted(self, now_unix_s: float, now_s: float) -> bool:
        """Whether it can be trusted now. now_s: monotonic seconds."""
        ahead_s = now_unix_s - now_s
        if self._ahead_s is None:
            is_old = self._written_unix_s is not None and 0 <= now_unix_s - self._written_unix_s - TRUST_S <= MAX_AWAY_S
            self._trusted_from_s = now_s + (0.0 if is_old else TRUST_S)
        elif abs(ahead_s - self._ahead_s) > MAX_STEP_BACK_S:
            self._trusted_from_s = now_s + TRUST_S
        self._ahead_s = ahead_s
        return not is_clock_wrong(now_unix_s) and now_s >= self._trusted_from_s
