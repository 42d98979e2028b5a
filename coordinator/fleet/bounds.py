"""The bounds of figures and names that agents say. PURE."""

from __future__ import annotations

import re

MAX_FIGURE = 1e15
"""The largest count, byte size or coefficient that a host could mean."""
MAX_JOULES = MAX_SECONDS = 1e12
MAX_WATTS = 1e6
MAX_TOKENS = 10**9
MAX_NAME_CHARACTERS = 128
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that would break a line of a log, or cannot be written at all."""


def range_fault(name: str, value: float | None, most: float) -> str | None:
    """Returns what is wrong with a figure that has to be unknown or from 0 to `most`; None if nothing is."""
    return None if value is None or 0 <= value <= most else f"{name} is {value}"


def name_fault(what: str, name: str) -> str | None:
    """Returns what is wrong with a name, which has characters that can be shown, and not too many; None if nothing."""
    if len(name) > MAX_NAME_CHARACTERS:
        return f"{what} has {len(name)} characters, more than {MAX_NAME_CHARACTERS}"
    if not name or CONTROL.search(name):
        return f"{what} {name!r} is empty or has control characters"
    return None
