"""Normal forms of short texts and numbers, so that two ways to write one answer compare as equal. PURE."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_DIGITS = 400
"""A number with more digits is no answer that anybody compares; reading it exactly would only cost time."""
_MAX_EXPONENT = 300
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"(?:(?<!\d)[-−])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)/\d+|(?<=\d))(?:[eE][-+]?\d+)?")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_LATEX_SPACING = re.compile(r"\\[,;:! ]|\\text\s*(?=\{)|\\(?:mathrm|mathbf|left|right|displaystyle)(?![a-zA-Z])")
_POWER_OF_TEN = re.compile(
    r"(?:(?<![\w.^])(?P<factor>\d+(?:\.\d+)?)[ ]?(?:[×x*·]|\\times|\\cdot)[ ]?|(?<![\w.^*×])(?<![\w.^*×] ))"
    r"10(?:\^|\*\*)(?:\{[ ]?(?P<braced>[-−+]?\d{1,9})[ ]?\}|(?P<bare>[-−+]?\d{1,9}))(?![\d.])"
)
_THOUSANDS_GAP = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")


def normalised(text: str) -> str:
    """The text without case, punctuation, articles and surplus space, with characters in one encoding (NFKC)."""
    lowered = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(" " if unicodedata.category(character)[0] in "PS" else character for character in lowered)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def without_latex(text: str) -> str:
    """The text with the LaTeX that models put around numbers taken off: spacing, `\\text`, and fractions as 3/4.

    Powers of ten, such as 2.5 × 10^3, become 2.5e3.
    """
    plain = _LATEX_FRACTION.sub(r"\1/\2", text)
    plain = _LATEX_SPACING.sub("", plain).replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    return _THOUSANDS_GAP.sub("", _POWER_OF_TEN.sub(_with_exponent, plain))


def _with_exponent(found: re.Match[str]) -> str:
    exponent = (found["braced"] or found["bare"]).replace("−", "-")
    return f"{found['factor'] or 1}e{exponent}"


def last_number(text: str) -> Fraction | None:
    """The exact last number of a text, such as 1,234.5, 3/4, 1e3 or -2; None where there is none."""
    for found in reversed(_NUMBER.findall(text)):
        if (value := _value(found)) is not None:
            return value
    return None


def first_number(text: str) -> Fraction | None:
    """The exact first number of a text; None where there is none."""
    return next((value for value in map(_value, _NUMBER.findall(text)) if value is not None), None)


def number_key(value: Fraction) -> str:
    """One way to write a number: 1234.5 as "1234.5", a third as "1/3"."""
    if value.denominator == 1:
        return str(value.numerator)
    exponent = _decimal_places(value.denominator)
    if exponent is None:
        return f"{value.numerator}/{value.denominator}"
    scaled = str(abs(value.numerator) * (10**exponent // value.denominator)).rjust(exponent + 1, "0")
    return f"{'-' if value < 0 else ''}{scaled[:-exponent]}.{scaled[-exponent:]}"


def _value(found: str) -> Fraction | None:
    plain = found.replace(",", "").replace("−", "-").lower()
    _, _, exponent = plain.partition("e")
    if len(plain) > MAX_DIGITS or (exponent and abs(int(exponent)) > _MAX_EXPONENT):
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def _decimal_places(denominator: int) -> int | None:
    """The number of decimal places that a fraction with this denominator takes; None where it never ends."""
    places = {2: 0, 5: 0}
    for prime in places:
        while denominator % prime == 0:
            denominator //= prime
            places[prime] += 1
    return max(places.values()) if denominator == 1 else None
