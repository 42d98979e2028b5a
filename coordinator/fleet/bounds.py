"""The bounds of figures and names that agents say. PURE."""

from __future__ import annotations

import re
from functools import cache
from typing import TypeVar

import msgspec
import msgspec.inspect

from moe2.common.leaves import leaves

T = TypeVar("T")

MAX_FIGURE = 1e15
"""The largest count, byte size or coefficient that a host could mean."""
MAX_JOULES = MAX_SECONDS = 1e12
MAX_WATTS = 1e6
MAX_TOKENS = 10**9
MAX_NAME_CHARACTERS = 128
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that would break a line of a log, or cannot be written at all."""
_TO_SPACES = {code: " " for code in range(0xE000) if CONTROL.match(chr(code))}
"""For `str.translate`, which takes a tenth of the time where all characters of a text are such."""
MAX_TEXT_CHARACTERS = 2000
"""The most characters of a text that is only shown."""
_WITHOUT_TEXT = frozenset((type(None), bool, int, float))
_FIGURES = (
    msgspec.inspect.NoneType,
    msgspec.inspect.BoolType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.EnumType,
)


def shown(value: T, most: int = MAX_TEXT_CHARACTERS) -> T:
    """Returns a value whose texts can be shown: no control characters, and none longer than `most`.

    value: a text, a struct or tuple that holds some, or anything else. What needs no change is returned as it is.
    """
    made: object = value
    if isinstance(value, str):
        # A word of an enumeration is a text, too, and sound.
        is_sound = type(value) is not str or (len(value) <= most and CONTROL.search(value) is None)
        made = value if is_sound else value[:most].translate(_TO_SPACES)
    elif isinstance(value, msgspec.Struct):
        # Every end of a job and every report comes through here, and most of their fields are figures.
        texts: dict[str, object] = {}
        for name in _worded(type(value)):
            part = getattr(value, name)
            if part is not None and (text := shown(part, most)) is not part:
                texts[name] = text
        if texts:
            made = msgspec.structs.replace(value, **texts)
    elif isinstance(value, tuple) and not _WITHOUT_TEXT.issuperset(map(type, value)):
        parts = tuple(shown(part, most) for part in value)
        if any(new is not old for new, old in zip(parts, value, strict=True)):
            made = parts
    return made  # type: ignore[return-value]


@cache
def _worded(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """The names of a struct's fields that can hold a text of the agent's, themselves or in their parts."""
    fields = msgspec.structs.fields(kind)
    return tuple(field.name for field in fields if _has_text(msgspec.inspect.type_info(field.type)))


def _has_text(info: msgspec.inspect.Type) -> bool:
    """Whether a value of the type can hold a text that is no word of an enumeration."""
    return not all(isinstance(leaf, _FIGURES) for leaf in leaves(info))


def range_fault(name: str, value: float | None, most: float) -> str | None:
    """Returns what is wrong with a figure that has to be unknown or from 0 to `most`; None if nothing is."""
    return first_range_fault((name, value, most))


def first_range_fault(*figures: tuple[str, float | None, float]) -> str | None:
    """Returns the first fault of several figures, each with the arguments of `range_fault`; None if there is none."""
    for name, value, most in figures:
        if value is not None and not 0 <= value <= most:
            return f"{name} is {value}"
    return None


def name_fault(what: str, name: str) -> str | None:
    """Returns what is wrong with a name, which has characters that can be shown, and not too many; None if nothing."""
    if len(name) > MAX_NAME_CHARACTERS:
        return f"{what} has {len(name)} characters, more than {MAX_NAME_CHARACTERS}"
    if not name or CONTROL.search(name):
        return f"{what} {name!r} is empty or has control characters"
    return None
