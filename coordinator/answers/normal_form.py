"""The normal forms of short texts and of numbers, so that two ways to write one answer compare as equal. PURE.

Numbers are read exactly, in the notations that models write. A comma between groups of three digits parts thousands,
any other single one is a decimal comma: 1,234 is a thousand and 3,5 is three and a half. A point is decimal, but where
several of them, or a comma behind it, show that it parts thousands: 1.234.567 and 1.234,5.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x3001: ","}
_BEHIND_A_WORD = re.compile(r"(?<=\w)[+#]{1,2}(?!\w)")
"""What tells C++, C# and A+ from C and A."""
MAX_DIGITS = 400
"""A number with more digits is no answer that anybody compares; reading it exactly would only cost time."""
_MAX_EXPONENT = 300
_MAX_WORDS = 12
_NUMBER = re.compile(
    r"(?P<sign>(?<!\d)[-−]|(?<![^\s(=:$*])–(?=\d))?"
    r"(?:(?P<european>(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+|(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![.\d]))"
    r"|(?P<comma>(?<![\d.,])(?:0,\d+|\d+,(?:\d{1,2}|\d{4,}))(?![\d/]|[.,]\d))"
    r"|(?P<mixed>(?<![\d.,/])\d{1,6} \d{1,3}/\d{1,3}(?![\d/]))"
    r"|(?P<plain>(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d{1,3}(?:['’_]\d{3})+(?!\d)"
    r"|\d{1,3}(?: \d{3}){2,}(?!\d)|\d+)?(?:\.\d+|(?<=\d)/\d+|(?<=\d))(?:[eE][-+]?\d+)?))"
    r"(?:[ -]?(?P<scale>hundred|thousand|million|billion|trillion)s?\b)?",
    re.IGNORECASE,
)
_LATEX_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))")
_LATEX_SPACING = re.compile(r"\\[,;:! ]|\\text\s*(?=\{)|\\(?:mathrm|mathbf|left|right|displaystyle)(?![a-zA-Z])")
_FRACTION_SIGN = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_RAISED = re.compile(r"(?<=\d)[⁻⁺]?[⁰¹²³⁴-⁹]+")
_POWER_OF_TEN = re.compile(
    r"(?:(?<![\w.^])(?P<factor>\d+(?:\.\d+)?)[ ]?(?:[×x*·]|\\times|\\cdot)[ ]?|(?<![\w.^*×])(?<![\w.^*×] ))"
    r"10(?:\^|\*\*)(?:\{[ ]?(?P<braced>[-−+]?\d{1,9})[ ]?\}|(?P<bare>[-−+]?\d{1,9}))(?![\d.])"
)
_POWER = re.compile(r"(?<![\w.^*])(\d{1,9})[ ]?(?:\^|\*\*)[ ]?(?:\{[ ]?(\d{1,3})[ ]?\}|(\d{1,3}))(?![\w.^])")
_THOUSANDS_GAP = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_NEGATIVE = re.compile(r"(?<![\d).] )(?<![\d).])\b(?:minus|negative)\s+(?=\d)", re.IGNORECASE)
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = {word: value for value, word in enumerate(_UNITS)} | {word: 10 * ten for ten, word in enumerate(_TENS, 2)}
_VAGUE = frozenset(("hundreds", "thousands", "millions", "billions", "trillions", "dozen", "dozens"))


def normalised(text: str) -> str:
    """The text without case, punctuation, articles and surplus space, with characters in one encoding (NFKC)."""
    lowered = unicodedata.normalize("NFKC", text).casefold()
    kept = {place for found in _BEHIND_A_WORD.finditer(lowered) for place in range(*found.span())}
    plain = "".join(
        " " if place not in kept and unicodedata.category(character)[0] in "PS" else character
        for place, character in enumerate(lowered)
    )
    return " ".join(_ARTICLES.sub(" ", plain).split())


def narrow(text: str) -> str:
    """The text with the wide letters, digits and signs of East Asian scripts as ASCII has them."""
    return text.translate(_WIDE)


def without_latex(text: str) -> str:
    """The text with numbers in plain signs: without LaTeX spacing and `\\text`, and with fractions as 3/4.

    Powers of ten, such as 2.5 × 10^3 and 10³, become 2.5e3 and 1e3; other powers of whole numbers their value.
    """
    plain = _LATEX_FRACTION.sub(_fraction, text)
    plain = _LATEX_SPACING.sub("", plain).replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    plain = _FRACTION_SIGN.sub(_fraction_of_sign, plain)
    plain = _RAISED.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), plain)
    plain = _POWER.sub(_power, _POWER_OF_TEN.sub(_with_exponent, plain))
    return _NEGATIVE.sub("-", _THOUSANDS_GAP.sub("", plain))


def _fraction(found: re.Match[str]) -> str:
    return f"{found[1]}{' ' if found[1] else ''}{found[2] or found[4]}/{found[3] or found[5]}"


def _fraction_of_sign(found: re.Match[str]) -> str:
    return f"{found[1]}{' ' if found[1] else ''}{unicodedata.normalize('NFKC', found[2]).replace('⁄', '/')}"


def _with_exponent(found: re.Match[str]) -> str:
    exponent = (found["braced"] or found["bare"]).replace("−", "-")
    return f"{found['factor'] or 1}e{exponent}"


def _power(found: re.Match[str]) -> str:
    base, exponent = found[1], int(found[2] or found[3])
    return str(int(base) ** exponent) if len(base) * exponent <= MAX_DIGITS else found[0]


def numbers_in(text: str) -> Iterator[tuple[int, int, Fraction]]:
    """The exact numbers in a text, with the places where each begins and ends; no part of a time such as 10:30."""
    for found in _NUMBER.finditer(text):
        start, end = found.span()
        is_time = (text[end : end + 1] == ":" and text[end + 1 : end + 2].isdigit()) or (
            text[start - 1 : start] == ":" and text[max(0, start - 2) : start - 1].isdigit()
        )
        value = None if is_time else _value(found)
        if value is not None:
            yield start, end, value


def last_number(text: str) -> Fraction | None:
    """The exact last number of a text, such as 1,234.5, 3/4, 1e3 or -2; None where there is none."""
    numbers = list(numbers_in(text))
    return numbers[-1][2] if numbers else None


def first_number(text: str) -> Fraction | None:
    """The exact first number of a text; None where there is none."""
    return next((value for _, _, value in numbers_in(text)), None)


def number_in_words(text: str) -> Fraction | None:
    """The number that a short text names in English words, such as "twenty-one apples"; None for any other.

    A text that names several, or one that is not exact, such as "dozens", names none.
    """
    words = normalised(text[: 20 * _MAX_WORDS]).split()
    places = [place for place, word in enumerate(words) if word in _SMALL or word in _SCALES]
    if not places or len(words) > _MAX_WORDS or not _VAGUE.isdisjoint(words):
        return None
    start, end = places[0], places[-1] + 1
    value = _value_of_words([word for word in words[start:end] if word != "and"])
    is_negative = start > 0 and words[start - 1] in ("minus", "negative")
    return None if value is None else Fraction(-value if is_negative else value)


def _value_of_words(words: list[str]) -> int | None:
    total, part = 0, 0
    room = 1000
    """What may still be added to the part is below this."""
    for word in words:
        if word == "hundred" and part < 10:
            part, room = max(1, part) * 100, 100
        elif word in _SCALES and word != "hundred":
            total, part, room = total + max(1, part) * _SCALES[word], 0, 1000
        elif word in _SMALL and _SMALL[word] < room:
            part += _SMALL[word]
            room = 10 if _SMALL[word] >= 20 else 0
        else:
            return None
    return total + part


def number_key(value: Fraction) -> str:
    """One way to write a number: 1234.5 as "1234.5", a third as "1/3"."""
    if value.denominator == 1:
        return str(value.numerator)
    exponent = _decimal_places(value.denominator)
    if exponent is None:
        return f"{value.numerator}/{value.denominator}"
    scaled = str(abs(value.numerator) * (10**exponent // value.denominator)).rjust(exponent + 1, "0")
    return f"{'-' if value < 0 else ''}{scaled[:-exponent]}.{scaled[-exponent:]}"


def _value(found: re.Match[str]) -> Fraction | None:
    """The value of a match of `_NUMBER`; None where it is too long, or divided by 0."""
    if found["european"]:
        plain = found["european"].replace(".", "").replace(",", ".")
    elif found["comma"]:
        plain = found["comma"].replace(",", ".")
    else:
        plain = re.sub("[,'’_]", "", found["mixed"] or found["plain"]).lower()
    whole, _, fraction = plain.partition(" ") if found["mixed"] else ("0", "", plain.replace(" ", ""))
    _, _, exponent = fraction.partition("e")
    if len(plain) > MAX_DIGITS or (exponent and abs(int(exponent)) > _MAX_EXPONENT):
        return None
    try:
        value = int(whole) + Fraction(fraction)
    except (ValueError, ZeroDivisionError):
        return None
    return (-value if found["sign"] else value) * _SCALES.get((found["scale"] or "").lower(), 1)


def _decimal_places(denominator: int) -> int | None:
    """The number of decimal places that a fraction with this denominator takes; None where it never ends."""
    places = {2: 0, 5: 0}
    for prime in places:
        while denominator % prime == 0:
            denominator //= prime
            places[prime] += 1
    return max(places.values()) if denominator == 1 else None
