"""The final answer in a text that a model wrote, with the reasoning before it left aside. PURE.

Models wrap an answer in words, so it is looked for where they declare one: in `\\boxed{…}`, in `<answer>` tags, behind
`####`, and behind words such as "the answer is". The last declaration that names an answer counts, because reasoning
revises itself. Where a text declares none, each kind has its own next best place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import msgspec

from moe2.coordinator.answers.form import AnswerForm, AnswerKind, telling_field
from moe2.coordinator.answers.normal_form import first_number, last_number, normalised, number_key, without_latex

MAX_CHARACTERS = 20_000
"""Of a longer text only so many characters at its end are read: an answer stands there, and time is bounded."""
MAX_SHORT_WORDS = 12
"""A text of more words is no short answer."""
MAX_SEGMENT = 300
MAX_DECLARATIONS = 50
_BOXED = re.compile(r"\\boxed\s*\{")
_TAGGED = re.compile(r"<answer>(.{1,2000}?)</answer>", re.IGNORECASE | re.DOTALL)
_HASHES = re.compile(r"^####[ \t]*(\S.{0,300})$", re.MULTILINE)
_DECLARING = re.compile(
    r"\banswer\b(?![^\S\n]+(?:the|this|that|your|these|any)\b)"
    r"(?:[^\n.:=]{0,60}?(?:\bis\b|\bare\b|\bbe\b|[:=]))?[*_\s:=]*",
    re.IGNORECASE,
)
_NAMING = re.compile(
    r"\b(?:option|choice|must be|it is|it's|choose|pick|select|go(?:ing)? with)\b"
    r"(?:[^\n.:=]{0,30}?(?:\bis\b|[:=]))?[*_\s:=]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"(?<![A-Z0-9])[.!?](?=\s|$)|(?<=[0-9])[.!?](?=\s|$)|(?<=\b[A-Z])[.](?=\s+[A-Z][a-z]|\s*$)|\n"
)
_BRACKETED = re.compile(
    r"[\s*_\"'`$]*(?:(?:option|choice|letter)\s+)?[*_\"'`$]*[(\[{]\s*\**([A-Za-z])\**\s*[)\]}]", re.IGNORECASE
)
_BARE = re.compile(r"[\s*_\"'`$]*(?:(?:option|choice|letter)\s+)?[*_\"'`$]*([A-Z])(?![A-Za-z0-9'’])", re.IGNORECASE)
_SMALL_AT_END = re.compile(r"[\s*_\"'`$]*([a-z])\W*$")
_ANY_BRACKETED = re.compile(r"(?<!\bnot )(?<!\bnor )\(([A-Z])\)")
_OPENING = re.compile(r"^[\s*_(]*([A-Z])(?:[\s*_).:,]|$)")
_ANOTHER = re.compile(r"[*_)\s\].}]*(?:\bor\b|\band\b|/|&|,)\s*[*_(\[]*\s*([A-Z])(?![A-Za-z0-9'’])")
_NEGATED = re.compile(r"[\s*_]*(?:not|neither|n't|never)\b", re.IGNORECASE)
_YES_NO = re.compile(r"^\W*(yes|no|true|false)(?=\s*(?:[,.:;!)\n–—-]|$))", re.IGNORECASE)
_ASIDE = re.compile(
    r"\s*(?:,\s*(?=(?:the|a|an|which|who|as|because|since|so|and)\b)|;|\bbecause\b|\bsince\b|(?<=\s)\()", re.IGNORECASE
)
_IN_BRACKETS = re.compile(r"[\s*_\"'`]*\(\s*([^()]*\w[^()]*?)\s*\)")
_QUANTITY = re.compile(
    r"^[^\w\s.−-]{0,3}\s*([-−]?[\d.,/]*\d(?:[eE][-+]?\d+)?)\s*(?:%|°\w?|[^\W\d]\S{0,15})?(?:\s[^\W\d]\S{0,15})?$"
)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_IS = frozenset(("is", "are", "was", "were"))
_LARGER = re.compile(r"\b(?:(?:thir|for|fif|six|seven|eigh|nine)ty|hundreds?|thousands?|millions?|billions?|dozens?)\b")
"""Words that make another number of the one beside them."""
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
    text = text[-MAX_CHARACTERS:]
    match form.kind:
        case AnswerKind.CHOICE:
            found = _choice(text, form)
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


# --- Where answers are declared ---------------------------------------------------------------------------------------


def _declared(text: str, pattern: re.Pattern[str] = _DECLARING) -> Iterator[str]:
    """The texts that are declared to be the answer, the last one first: what follows each declaration."""
    marked = [(found.start(), found[1]) for found in (*_TAGGED.finditer(text), *_HASHES.finditer(text))]
    marked += [(found.start(), _braced(text, found.end())) for found in _BOXED.finditer(text)]
    yield from (without_latex(segment) for _, segment in sorted(marked, reverse=True)[:MAX_DECLARATIONS])
    for found in list(pattern.finditer(text))[: -MAX_DECLARATIONS - 1 : -1]:
        yield text[found.end() : found.end() + MAX_SEGMENT]


def _braced(text: str, start: int) -> str:
    """The text up to the brace that closes the one before `start`."""
    depth = 1
    for place in range(start, min(len(text), start + MAX_SEGMENT)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return ""


def _sentence(segment: str) -> str:
    """The segment up to the end of its first sentence or line."""
    segment = segment.lstrip()
    end = _SENTENCE_END.search(segment)
    return segment[: end.start()] if end else segment


# --- Choices ----------------------------------------------------------------------------------------------------------


def _choice(text: str, form: AnswerForm) -> str | None:
    """The key of the option that a text names."""
    whole = _named_alone(text, form)
    if whole is not None:
        return whole
    for pattern in (_DECLARING, _NAMING):
        for segment in _declared(text, pattern):
            found = _named_first(segment, form)
            if found is _AMBIGUOUS:
                return None
            if isinstance(found, str):
                return found
    return _undeclared(text, form)


def _undeclared(text: str, form: AnswerForm) -> str | None:
    """The option that a text without a declaration names: it opens with it, closes with it, or brackets no other."""
    opening = _OPENING.match(text)
    # "A dog barks" opens with an article, not with an option.
    if opening and opening[1] in form.letters and not re.match(r"[\s*_(]*[AI]\s+[a-z]", text):
        return None if _ANOTHER.match(text, opening.end(1)) else opening[1]
    last = text.rstrip().rsplit("\n", 1)[-1]
    if last != text and (found := _named_alone(last, form)) is not None:
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
        same = [place for place, choice in enumerate(form.choices) if choice.strip() == text.strip()]
    if len(same) == 1:
        return _key(same[0], form)
    letter = text.strip().strip("()[]{}*_.:\"'` \t").upper()
    return letter if len(letter) == 1 and letter in form.letters else None


def _named_first(segment: str, form: AnswerForm) -> str | object | None:
    """The option that a declaration names; `_AMBIGUOUS` where it names several, None where it names none."""
    if _NEGATED.match(segment):
        return None
    sentence = _sentence(segment)
    if (bracketed := _BRACKETED.match(segment)) and bracketed[1].upper() in form.letters:
        return _AMBIGUOUS if _ANOTHER.match(segment, bracketed.end()) else bracketed[1].upper()
    if (alone := _named_alone(sentence, form)) is not None:
        return alone
    mentions = list(_mentions(sentence, form))
    if mentions and mentions[0][0] == 0:
        return _AMBIGUOUS if mentions[1:] and mentions[1][0] == 0 else _key(mentions[0][1], form)
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
    """The number that a text declares, else the last one of a complete text."""
    for segment in _declared(text):
        sentence = without_latex(_sentence(segment))
        if not sentence or _NEGATED.match(sentence):
            continue
        result = sentence.rsplit("=", 1)[-1]
        found = first_number(result)
        if found is None:
            found = _in_words(result)
        if found is not None:
            return found
    if not is_complete:
        return None
    plain = without_latex(text)
    found = last_number(plain)
    return _in_words(plain) if found is None else found


def _in_words(text: str) -> Fraction | None:
    """The number that a short text names in a word, such as "seven apples"; None for any other."""
    words = normalised(text[:MAX_SEGMENT]).split()
    named = [word for word in words if word in _WORDS]
    if _LARGER.search(" ".join(words)):
        return None
    return Fraction(_WORDS.index(named[0])) if len(named) == 1 and len(words) <= MAX_SHORT_WORDS else None


def _short(text: str, *, is_complete: bool) -> str | None:
    """The short answer that a text declares, or that a complete text consists of; None where there is neither."""
    for segment in _declared(text):
        sentence = _without_aside(_sentence(segment))
        if not _NEGATED.match(sentence) and _is_short(sentence):
            return sentence
    if found := _YES_NO.match(text):
        return found[1]
    if not is_complete:
        return None
    whole = text.strip()
    sentence = _sentence(whole)
    rest = whole[len(sentence) :].strip(" .!?\n")
    if rest:
        return None
    sentence = _without_aside(sentence)
    declaring = _DECLARING.search(sentence)
    declares_nothing = declaring is not None and not normalised(sentence[declaring.end() :])
    return sentence if _is_short(sentence) and not declares_nothing else None


def _without_aside(sentence: str) -> str:
    """The sentence without what explains it behind; of one that begins with brackets, what they hold, as in "(B)"."""
    if bracketed := _IN_BRACKETS.match(sentence):
        behind = _ASIDE.split(sentence[bracketed.end() :], maxsplit=1)[0]
        return sentence.strip() if normalised(behind) else bracketed[1]
    return _ASIDE.split(sentence, maxsplit=1)[0].strip()


def _is_short(text: str) -> bool:
    return 0 < len(normalised(text).split()) <= MAX_SHORT_WORDS


def _text_answer(short: str, form: AnswerForm, *, as_number: bool) -> Answer | None:
    if as_number:
        plain = without_latex(short).strip().strip("*_$\"'`")
        quantity = _QUANTITY.match(plain.strip())
        number = first_number(quantity[1]) if quantity else None
        if number is None and normalised(short) in _WORDS:
            number = Fraction(_WORDS.index(normalised(short)))
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
    """The JSON document in a text: the text itself, or what stands in a fence or between the outermost brackets."""
    fenced = _FENCE.search(text)
    tries = [text, fenced[1] if fenced else "", *(_between(text, *pair) for pair in ("{}", "[]"))]
    for attempt in tries:
        try:
            return msgspec.json.decode(attempt.strip())
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError, ValueError):
            continue
    return None


def _between(text: str, opening: str, closing: str) -> str:
    start, end = text.find(opening), text.rfind(closing)
    return text[start : end + 1] if 0 <= start < end else ""


def _value_key(value: Any) -> str | None:
    """One way to write a JSON value; of a text its normal form. None for null and for empty texts."""
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case int() | float():
            number = first_number(repr(value))
            return repr(value) if number is None else number_key(number)
        case str():
            return normalised(value) or value.strip() or None
        case _:
            try:
                return msgspec.json.encode(value, order="deterministic").decode()
            except (RecursionError, msgspec.MsgspecError, ValueError):
                return None
