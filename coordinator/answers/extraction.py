"""The final answer in a text that a model wrote, with the reasoning before it left aside. PURE.

Models wrap an answer in words, so it is looked for where they declare one: in `\\boxed{…}`, in `<answer>` tags, behind
`####`, and behind words such as "the answer is" (`moe2.coordinator.answers.declarations`). The last declaration that
names an answer counts, because reasoning revises itself. Where a text declares none, each kind has its own next best
place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import msgspec

from moe2.coordinator.answers.declarations import DECLARING, MAX_SEGMENT, NAMING, affirmed, declared, sentence_of
from moe2.coordinator.answers.form import AnswerForm, AnswerKind, telling_field
from moe2.coordinator.answers.normal_form import (
    last_number,
    narrow,
    normalised,
    number_in_words,
    number_key,
    numbers_in,
    without_latex,
)

MAX_CHARACTERS = 20_000
"""Of a longer text only so many characters at its end are read: an answer stands there, and time is bounded."""
MAX_SHORT_WORDS = 12
"""A text of more words is no short answer."""
MAX_REPEATED_WORDS = 4
MAX_DOCUMENTS = 50
_LEAD = (
    r"[\s*_\"'`$]*(?:(?:the|la|le|el|die|der|das|de|het)\s+)?"
    r"(?:(?:option|choice|letter|opción|opção|opzione|optie|lettre|letra|lettera|buchstabe|вариант)\s+)?[*_\"'`$]*"
)
_BRACKETED = re.compile(_LEAD + r"[(\[{]\s*\**([A-Za-z])\**\s*[)\]}]", re.IGNORECASE)
_BARE = re.compile(_LEAD + r"([A-Z])(?![A-Za-z0-9'’])", re.IGNORECASE)
_SMALL_AT_END = re.compile(r"[\s*_\"'`$]*([a-z])\W*$")
_ANY_BRACKETED = re.compile(r"(?<!\bnot )(?<!\bnor )\(([A-Z])\)")
_OPENING = re.compile(r"^[\s*_(]*([A-Z])(?:[\s*_).:,]|$)")
_ANOTHER = re.compile(r"[*_)\s\].}]*(?:\bor\b|\band\b|/|&|,)\s*[*_(\[]*\s*([A-Z])(?![A-Za-z0-9'’])")
_CONCLUDING = re.compile(
    r"(?:^|(?<=[\s.,;:]))(?:(?i:so|therefore|thus|hence)\b|[→➡✅]\ufe0f?|[=-]>)[\s,:]*[*_(\[]*([A-Z])[)\]*_]*\W*$"
)
_LISTING = re.compile(r"^[\s*_(]*A[*_]*[).:].*?(?:\s|^)[*_(]*B[*_]*[).:]", re.DOTALL)
_YES_NO = re.compile(
    r"^\W*(yes|no|true|false|ja|nein|nee|oui|non|sí|sì|sim|não|да|нет)(?=\s*(?:[,.:;!)\n–—-]|$))", re.IGNORECASE
)
_UNKNOWING = re.compile(
    r"^\W*(?:sorry\W+)?(?:i(?: do not|['’ ]?(?:m| am) not| don['’]?t) (?:know|sure|certain)"
    r"|(?:i['’ ]?(?:m| am) (?:very )?sorry\W+(?:but )?)?i (?:can(?:not| not|['’]?t)|am unable to|am not able to) "
    r"(?:assist|help|answer|provide|do that|fulfil)|as an ai\b)\b",
    re.IGNORECASE,
)
"""What is said by who has no answer."""
_ASIDE = re.compile(
    r"\s*(?:,\s*(?=(?:the|a|an|which|who|as|because|since|so|and)\b)|;|\bbecause\b|\bsince\b|(?<=\s)\()", re.IGNORECASE
)
_IN_BRACKETS = re.compile(r"[\s*_\"'`]*\(\s*([^()]*\w[^()]*?)\s*\)")
_UNIT = re.compile(r"\s*(?:%|°\w?|[^\W\d]\S{0,15})?(?:\s[^\W\d]\S{0,15})?$")
_BEFORE_QUANTITY = re.compile(r"[^\w\s.−-]{0,3}\s*")
_BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*")
_EXPLAINED = re.compile(r"\([^()]*\)")
_OR_ANOTHER = re.compile(r"\s*(?:or|to|through|oder|bis|ou|o|–|-)\s*[-−]?\d", re.IGNORECASE)
_BETWEEN = re.compile(r"\b(?:between|zwischen|entre)\s+\S{0,20}$", re.IGNORECASE)
_COPULA_BEHIND = re.compile(r"(?<=\w)\s*(?:です|でした|である|입니다|이다)$")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_IS = frozenset(("is", "are", "was", "were"))
_ALTERNATIVES = (["or"], ["oder"], ["ou"], ["o"])
_AMBIGUOUS = object()


@dataclass(frozen=True)
class Answer:
    """A final answer. Two answers are the same where their keys are."""

    kind: AnswerKind
    key: str
    """Its normal form; of a choice the option's letter, or its text where options have no letters."""


def extract(text: str, form: AnswerForm, *, is_complete: bool = True) -> Answer | None:
    """The final answer in a text; None where it has none of this form, or names several.

    is_complete: False of a text that was cut off, whose last words are reasoning that has not arrived: a number or a
    short text then counts only where it is declared.
    """
    text = narrow(text[-MAX_CHARACTERS:])
    match form.kind:
        case AnswerKind.CHOICE:
            found = _choice(text, form, is_complete=is_complete)
            return None if found is None else Answer(AnswerKind.CHOICE, found)
        case AnswerKind.NUMBER:
            number = _number(text, is_complete=is_complete)
            return None if number is None else Answer(AnswerKind.NUMBER, number_key(number))
        case AnswerKind.JSON:
            key = _json_key(text, form.field)
            return None if key is None else Answer(AnswerKind.JSON, key)
        case AnswerKind.TEXT:
            short = _short(text, is_complete=is_complete)
            return None if short is None else _text_answer(short, form, as_number=False)
        case None:
            short = _short(text, is_complete=is_complete)
            return None if short is None else _text_answer(short, form, as_number=True)


# --- Choices ----------------------------------------------------------------------------------------------------------


def _choice(text: str, form: AnswerForm, *, is_complete: bool) -> str | None:
    """The key of the option that a text names."""
    whole = _named_alone(text, form)
    if whole is not None:
        return whole
    for pattern in (DECLARING, NAMING):
        for segment in declared(text, pattern):
            found = _named_first(segment, form)
            if found is _AMBIGUOUS:
                return None
            if isinstance(found, str):
                return found
    return _undeclared(text, form, is_complete=is_complete)


def _undeclared(text: str, form: AnswerForm, *, is_complete: bool) -> str | None:
    """The option that a text without a declaration names: it closes or opens with it, or brackets no other."""
    concluding = _CONCLUDING.search(text.rstrip()[-MAX_SEGMENT:]) if is_complete else None
    if concluding and concluding[1] in form.letters:
        return concluding[1]
    opening = _OPENING.match(text)
    # "A dog barks" opens with an article, and "A: …, B: …" with a list; neither with an option.
    if (
        opening
        and opening[1] in form.letters
        and not re.match(r"[\s*_(]*[AI]\s+[a-z]", text)
        and not _LISTING.match(text)
    ):
        return None if _ANOTHER.match(text, opening.end(1)) else opening[1]
    last = text.rstrip().rsplit("\n", 1)[-1]
    if last != text and (found := _named_alone(last, form)) is not None:
        return found
    if (said := _YES_NO.match(text)) and (found := _named_alone(said[1], form)) is not None:
        return found
    enclosed = {found for found in _ANY_BRACKETED.findall(text) if found in form.letters}
    if enclosed:
        return enclosed.pop() if len(enclosed) == 1 else None
    mentioned = {place for _, place in _mentions(text, form)}
    return _key(mentioned.pop(), form) if len(mentioned) == 1 else None


def _named_alone(text: str, form: AnswerForm) -> str | None:
    """The option that a text consists of, by its text or by its letter."""
    said = _plain(text)
    same = [place for place, choice in enumerate(form.choices) if _plain(choice) == said]
    if len(same) != 1:
        # Options that differ in form alone, such as "+" and "-", or "US" and "us".
        same = [place for place, choice in enumerate(form.choices) if narrow(choice).strip() == text.strip()]
    if len(same) == 1:
        return _key(same[0], form)
    letter = text.strip().strip("()[]{}*_.:\"'` \t").upper()
    return letter if len(letter) == 1 and letter in form.letters else None


def _named_first(segment: str, form: AnswerForm) -> str | object | None:
    """The option that a declaration names; `_AMBIGUOUS` where it names several, None where it names none."""
    affirmative = affirmed(segment)
    if affirmative is None:
        return None
    segment, sentence = affirmative, sentence_of(affirmative)
    if (bracketed := _BRACKETED.match(segment)) and bracketed[1].upper() in form.letters:
        return _AMBIGUOUS if _ANOTHER.match(segment, bracketed.end()) else bracketed[1].upper()
    if (alone := _named_alone(sentence, form)) is not None:
        return alone
    mentions = list(_mentions(sentence, form))
    if mentions and mentions[0][0] == 0:
        first = mentions[0][1]
        behind = len(_plain(form.choices[first]).split())
        is_alternative = _plain(sentence).split()[behind : behind + 1] in _ALTERNATIVES
        others = {0, behind + 1} if is_alternative else {0}
        return _AMBIGUOUS if any(at in others for at, _ in mentions[1:]) else _key(first, form)
    for pattern in (_BARE, _SMALL_AT_END):
        bare = pattern.match(segment if pattern is _BARE else sentence)
        if bare and bare[1].upper() in form.letters and (bare[1].isupper() or pattern is _SMALL_AT_END):
            return _AMBIGUOUS if _ANOTHER.match(segment, bare.end()) else bare[1].upper()
    enclosed = {found for found in _ANY_BRACKETED.findall(sentence) if found in form.letters}
    if enclosed:
        return enclosed.pop() if len(enclosed) == 1 else _AMBIGUOUS
    different = {place for _, place in mentions}
    if different:
        return _key(different.pop(), form) if len(different) == 1 else _AMBIGUOUS
    return None


def _mentions(text: str, form: AnswerForm) -> Iterator[tuple[int, int]]:
    """The options' texts within a text, as (word at which it begins, place of the option).

    Where options are prefixes of each other the longest one counts; of options with the same words, all are mentioned.
    """
    words = _plain(text[-MAX_CHARACTERS:]).split()
    options = sorted(((_plain(choice).split(), place) for place, choice in enumerate(form.choices)), key=_longest_first)
    by_first: dict[str, list[tuple[list[str], int]]] = {}
    for option, place in options:
        if option:
            by_first.setdefault(option[0], []).append((option, place))
    at = 0
    while at < len(words):
        hits = [hit for hit in by_first.get(words[at], ()) if words[at : at + len(hit[0])] == hit[0]]
        yield from ((at, place) for option, place in hits if len(option) == len(hits[0][0]))
        at += len(hits[0][0]) if hits else 1


def _longest_first(option: tuple[list[str], int]) -> int:
    return -len(option[0])


def _plain(text: str) -> str:
    return normalised(without_latex(text))


def _key(place: int, form: AnswerForm) -> str:
    return form.letters[place] if form.is_lettered and place < len(form.letters) else form.choices[place]


# --- Numbers and texts ------------------------------------------------------------------------------------------------


def _number(text: str, *, is_complete: bool) -> Fraction | None:
    """The number that a text declares, else the last one of a complete text; None where it declares several."""
    for segment in declared(text):
        affirmative = affirmed(segment)
        result = without_latex(sentence_of(affirmative or "")).rsplit("=", 1)[-1]
        found = next(numbers_in(result), None)
        if found is not None:
            _, end, value = found
            is_one = not (_OR_ANOTHER.match(result, end) or _BETWEEN.search(result[:end]))
            return value if is_one else None
        if (value_in_words := number_in_words(result)) is not None:
            return value_in_words
    if not is_complete:
        return None
    plain = without_latex(text).rstrip()
    bold = [amount for part in _BOLD.findall(plain.rsplit("\n", 1)[-1]) if (amount := _quantity(part)) is not None]
    if bold:
        return bold[-1]
    # What stands in brackets explains the number before it.
    for part in (_EXPLAINED.sub(" ", plain), plain):
        if (last := last_number(part)) is not None:
            return last
    return number_in_words(plain)


def _quantity(text: str) -> Fraction | None:
    """The number that a text consists of, a unit or a sign of money aside; None of any other text."""
    plain = without_latex(text).strip().strip("*_$\"'`").strip()
    begin = _BEFORE_QUANTITY.match(plain)
    start = begin.end() if begin else 0
    for found_at, end, value in numbers_in(plain):
        return value if found_at == start and _UNIT.match(plain, end) else None
    return None


def _short(text: str, *, is_complete: bool) -> str | None:
    """The short answer that a text declares, or that a complete text consists of; None where there is neither."""
    for segment in declared(text):
        affirmative = affirmed(segment)
        sentence = _without_aside(_COPULA_BEHIND.sub("", sentence_of(affirmative or "")))
        if _is_short(sentence):
            return sentence
    if found := _YES_NO.match(text):
        return found[1]
    if not is_complete:
        return None
    whole = text.strip()
    sentence = sentence_of(whole)
    rest = whole[len(sentence) :].strip(" .!?。\n")
    if rest and not _explains(rest, sentence):
        return None
    sentence = _without_aside(sentence)
    declaring = DECLARING.search(sentence)
    declares_nothing = declaring is not None and not normalised(sentence[declaring.end() :])
    return sentence if _is_short(sentence) and not declares_nothing else None


def _explains(rest: str, sentence: str) -> bool:
    """True where what follows a few words repeats them in its first sentence, as an explanation of an answer does."""
    words = normalised(sentence).split()
    return 0 < len(words) <= MAX_REPEATED_WORDS and set(words) <= set(normalised(sentence_of(rest)).split())


def _without_aside(sentence: str) -> str:
    """The sentence without what explains it behind; of one that begins with brackets, what they hold, as in "(B)"."""
    if bracketed := _IN_BRACKETS.match(sentence):
        behind = _ASIDE.split(sentence[bracketed.end() :], maxsplit=1)[0]
        return sentence.strip() if normalised(behind) else bracketed[1]
    return _ASIDE.split(sentence, maxsplit=1)[0].strip()


def _is_short(text: str) -> bool:
    return 0 < len(normalised(text).split()) <= MAX_SHORT_WORDS and not _UNKNOWING.match(text)


def _text_answer(short: str, form: AnswerForm, *, as_number: bool) -> Answer | None:
    if as_number:
        number = _quantity(short)
        if number is None and len(normalised(short).split()) == 1:
            number = number_in_words(short)
        if number is not None:
            return Answer(AnswerKind.NUMBER, number_key(number))
    key = _without_question(_plain(short).split(), form.asked)
    return Answer(AnswerKind.TEXT, key) if key else None


def _without_question(words: list[str], asked: AbstractSet[str]) -> str:
    """The words of a short text without those of the question around them, such as "the capital of Egypt is" Cairo.

    Only a sentence with a verb repeats a question; one that holds nothing else stays whole.
    """
    start, end = 0, len(words)
    repeated = asked | _IS
    while start < end and words[start] in repeated:
        start += 1
    while end > start and words[end - 1] in repeated:
        end -= 1
    is_sentence = not _IS.isdisjoint([*words[:start], *words[end:]])
    return " ".join(words[start:end] if is_sentence and start < end else words)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json_key(text: str, field: str | None) -> str | None:
    """The normal form of a JSON document's answer: that field's value, or the document's."""
    document = _document(text)
    if document is None:
        return None
    if isinstance(document, dict):
        field = field or telling_field([name for name in document if isinstance(name, str)])
        if field is not None:
            if field not in document:
                return None
            return _value_key(document[field])
    elif field is not None:
        return None
    return _value_key(document)


def _document(text: str) -> Any:
    """The last JSON document in a text: the text itself, or what stands in a fence or in brackets."""
    for attempt in (text, *reversed(_FENCE.findall(text))):
        try:
            return msgspec.json.decode(attempt.strip())
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError, ValueError):
            continue
    return _last_bracketed(text)


def _last_bracketed(text: str) -> Any:
    """The last object, or else list, that stands among other words; None where there is none."""
    decoder = json.JSONDecoder()
    for opening in ("{", "["):
        document, at, failures = None, text.find(opening), 0
        while at >= 0 and failures < MAX_DOCUMENTS:
            try:
                document, end = decoder.raw_decode(text, at)
            except (RecursionError, ValueError):
                end, failures = at + 1, failures + 1
            at = text.find(opening, end)
        if document is not None:
            return document
    return None


def _value_key(value: Any) -> str | None:
    """One way to write a JSON value; of a text its normal form. None for null and for empty texts."""
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case int() | float():
            number = last_number(repr(value))
            return repr(value) if number is None else number_key(number)
        case str():
            return normalised(value) or value.strip() or None
        case _:
            try:
                return msgspec.json.encode(value, order="deterministic").decode()
            except (RecursionError, msgspec.MsgspecError, ValueError):
                return None
