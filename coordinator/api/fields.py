"""Reading single parameters of a request's body. PURE. Everything raises `ApiError` (400) naming the parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe2.coordinator.api.errors import invalid, unsupported


def clean(text: str, where: str) -> str:
    """Refuse what no tokenizer can take: NUL ends a C string."""
    if "\0" in text:
        raise invalid(f"'{where}' contains a NUL character.", param=where)
    return text


def flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise invalid(f"{name!r} must be a boolean.", param=name)
    return value


def text_of(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid(f"{name!r} must be a string.", param=name)
    return value


def number(fields: Mapping[str, Any], name: str, kind: type[int] | type[float], least: float, most: float) -> Any:
    value = fields.get(name)
    if value is None:
        return None
    # A bool is an int to Python, but not to JSON.
    is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        noun = "an integer" if kind is int else "a number"
        raise invalid(f"{name!r} must be {noun} from {least} to {most}.", param=name)
    return kind(value)


def whole_number(text: str, least: int, most: int) -> int | None:
    """The whole number that a query parameter says, in ASCII digits; None if it says none, or one out of bounds.

    Never more digits are converted than `most` has: Python refuses to convert thousands of them.
    """
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None
    return value if least <= (value := int(text)) <= most else None


def object_of(value: Any, where: str, known: set[str]) -> dict[str, Any]:
    """A JSON object that has no other fields than these; explicit nulls are left out."""
    if not isinstance(value, dict):
        raise invalid(f"'{where}' must be an object.", param=where)
    for name in value:
        if name not in known:
            raise unsupported(f"{where}.{name}")
    return {name: part for name, part in value.items() if part is not None}
