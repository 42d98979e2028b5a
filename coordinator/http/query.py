"""What stands behind the question mark of a request. PURE."""

from __future__ import annotations


def whole_number(text: str, least: int, most: int) -> int | None:
    """Parses a query parameter of ASCII digits; None if it is no number, or one out of bounds.

    At most as many digits are converted as `most` has, since Python refuses to convert thousands of them.
    """
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None
    return value if least <= (value := int(text)) <= most else None
