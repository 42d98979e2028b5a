"""Figures and foreign text as people read them in a terminal. PURE.

None is shown as unknown, never as 0. What came over the network is made printable first: a terminal obeys control
characters, and an agent's name or a model's error must not drive the terminal of the person who looks at it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

UNKNOWN = "–"
UNMEASURED = "unmeasured"

_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86_400


def known(value: float | None, form: Callable[[float], str], *, otherwise: str = UNKNOWN) -> str:
    """`form(value)`, or `otherwise` where there is no value."""
    return otherwise if value is None else form(value)


def number(value: float) -> str:
    """Three significant digits at most, without an exponent: 1234, 41.7, 0.0214."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    if magnitude >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}" if magnitude >= 1e-4 else f"{value:.1e}"


def latency(value_s: float) -> str:
    """A short time in its own unit: 840 µs, 21.4 ms, 3.20 s."""
    if value_s < 1e-3:
        return f"{number(value_s * 1e6)} µs"
    if value_s < 1:
        return f"{number(value_s * 1e3)} ms"
    return f"{number(value_s)} s"


def duration(value_s: float) -> str:
    """A long time in its two largest units: 42 s, 3 min 5 s, 7 h 12 min, 4 d 3 h."""
    seconds = max(0, int(value_s))
    if seconds < _MINUTE_S:
        return f"{seconds} s"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S} min {seconds % _MINUTE_S} s"
    if seconds < _DAY_S:
        return f"{seconds // _HOUR_S} h {seconds % _HOUR_S // _MINUTE_S} min"
    return f"{seconds // _DAY_S} d {seconds % _DAY_S // _HOUR_S} h"


def size(value_bytes: float) -> str:
    """Bytes in powers of 1000, as disks and GGUF files are labelled: 98.9 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if value_bytes < 1000:
            return f"{number(value_bytes)} {unit}"
        value_bytes /= 1000
    return f"{number(value_bytes)} TB"


def percent(share: float) -> str:
    return f"{share * 100:.0f}%"


def moment(at_unix_s: float) -> str:
    """A moment in UTC, ISO 8601 to the second."""
    return datetime.fromtimestamp(at_unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def printable(text: str) -> str:
    """`text` on one line and without control characters."""
    return _without_controls(text).strip()


def printable_lines(text: str) -> str:
    """`text` without control characters but the ends of its lines."""
    return text if text.isprintable() else "\n".join(map(_without_controls, text.split("\n")))


def _without_controls(text: str) -> str:
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)


def shortened(text: str, max_characters: int) -> str:
    """`text` itself, or its beginning and its end around the number of characters left out.

    What a message repeats of foreign input is bounded by it, and its end, often the remedy, stays readable.
    """
    if len(text) <= max_characters:
        return text
    head = max_characters * 2 // 3
    tail = max_characters - head
    return f"{text[:head]} … ({len(text) - head - tail} characters left out) … {text[len(text) - tail :]}"


def fact_line(word: str, /, **facts: object) -> str:
    """One line of plain output: a word, then key=value pairs that a shell's rules split. None is shown as unknown."""
    return " ".join([word, *(f"{key}={_quoted(value)}" for key, value in facts.items())])


def _quoted(value: object) -> str:
    text = UNKNOWN if value is None else printable(str(value))
    if text and not any(char in text for char in " \"'\\="):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
