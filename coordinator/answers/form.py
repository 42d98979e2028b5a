"""The form of a request's final answer: which kind it is, and what it is chosen from. PURE.

A client names the kind with `moe2.answer`. Else it is recognised: from `moe2.choices`, from a `response_format` with a
JSON schema, from options that the prompt lists as (A), (B), …, or from a question for a number. What is left is open:
then each text is read as a number or a short text, whichever it is.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import StrEnum
from typing import Any

import msgspec

from moe2.coordinator.answers.normal_form import normalised

LETTERS = string.ascii_uppercase
MAX_PROMPT_CHARACTERS = 100_000
"""So many characters at the end of a prompt are searched for options and for the question."""
MAX_QUESTION_CHARACTERS = 2000
"""So many characters at the end of a prompt are taken for the question itself."""
ANSWER_FIELDS = (
    "answer",
    "final_answer",
    "finalanswer",
    "result",
    "label",
    "choice",
    "value",
    "prediction",
    "category",
)
"""Names of JSON fields that hold an answer, the likeliest first; compared without case and dashes."""
_OPTION_LINE = re.compile(r"^[ \t>*-]*(?:\(([A-Z])\)|([A-Z])[).:])[ \t]+(\S.{0,2000}?)[ \t]*$", re.MULTILINE)
_INLINE_OPTION = re.compile(
    r"\(([A-Z])\)[ \t]*([^()\n]{1,300}?)(?=[ \t]*[,;]?[ \t]*(?:\([A-Z]\)|$|[.?]?\n))", re.MULTILINE
)
_ASKS_NUMBER = re.compile(
    r"\b(?:how\s+(?:many|much|old|far|long|tall|often|heavy|fast)|calculate|compute|evaluate|what\s+is\s+the\s+"
    r"(?:sum|product|difference|quotient|remainder|total|average|mean|probability|area|volume|perimeter|number|value))\b"
    r"|\d\s*[-+*/×÷^]\s*\(?-?\d[^\n]{0,200}?(?:=|\?|\s*$)"
    r"|\d\s+(?:plus|minus|times|multiplied\s+by|divided\s+by)\s+-?\d"
    r"|\b(?:as\s+an?|just\s+(?:the|an?)|only\s+(?:with\s+)?(?:the|an?)|with\s+an?)\s+(?:single\s+)?(?:number|integer)\b",
    re.IGNORECASE,
)


class AnswerKind(StrEnum):
    """The kinds of final answers, each of which is compared in a way of its own."""

    CHOICE = "choice"
    """One of given options, named by its letter or its text."""
    NUMBER = "number"
    """A number; units, thousands and notation do not matter."""
    JSON = "json"
    """A field of a JSON document, or the whole document."""
    TEXT = "text"
    """A short text; case, punctuation and articles do not matter."""


@dataclass(frozen=True)
class AnswerForm:
    """The form that a request's final answer has."""

    kind: AnswerKind | None = None
    """None: open, so that each text is read as a number or a short text, whichever it is."""
    choices: tuple[str, ...] = ()
    """The options' texts; empty where only their letters are known, and for other kinds."""
    is_lettered: bool = False
    """Whether an option may be named by its letter."""
    field: str | None = None
    """The field of a JSON document that holds the answer; None: the whole document does."""
    asked: frozenset[str] = dataclass_field(default=frozenset(), compare=False)
    """The words of the question, which a short text may repeat around its answer; for texts alone."""

    @property
    def letters(self) -> str:
        """The letters that name options; empty where none do."""
        if not self.is_lettered:
            return ""
        return LETTERS[: len(self.choices)] if self.choices else LETTERS


OPEN = AnswerForm()


def form_of(
    prompt: str, *, kind: AnswerKind | None = None, choices: Sequence[str] = (), schema: str | None = None
) -> AnswerForm:
    """The form of the final answer to a prompt.

    kind: as the client named it; None if it did not. choices: the options that the client gave. schema: the JSON schema
    that the answer follows, as JSON text; None where its form is free.
    """
    if kind is AnswerKind.JSON or (kind is None and schema is not None):
        return AnswerForm(AnswerKind.JSON, field=None if schema is None else answer_field(schema))
    if choices and kind in (None, AnswerKind.CHOICE):
        return AnswerForm(AnswerKind.CHOICE, tuple(choices))
    if kind in (None, AnswerKind.CHOICE):
        options = listed_options(prompt)
        if options or kind is AnswerKind.CHOICE:
            return AnswerForm(AnswerKind.CHOICE, options, is_lettered=True)
    question = prompt[-MAX_QUESTION_CHARACTERS:]
    if kind is None and _ASKS_NUMBER.search(question):
        return AnswerForm(AnswerKind.NUMBER)
    return AnswerForm(kind, asked=frozenset(normalised(question).split()))


def listed_options(prompt: str) -> tuple[str, ...]:
    """The texts of the options that a prompt lists last, from (A) on; empty where it lists fewer than two.

    Options stand on lines of their own ("(A) red", "B. blue", "C) green"), or in one line as "(A) red (B) blue".
    """
    text = prompt[-MAX_PROMPT_CHARACTERS:]
    lines = [(found[1] or found[2], found[3]) for found in _OPTION_LINE.finditer(text)]
    return _last_run(lines) or _last_run([(found[1], found[2].strip()) for found in _INLINE_OPTION.finditer(text)])


def answer_field(schema: str) -> str | None:
    """The field that holds the answer in documents of a JSON schema; None where it is the whole document.

    It is the only required property, or the only one beside a text of reasoning, or one with a telling name.
    """
    try:
        rules: Any = msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError):
        return None
    properties = rules.get("properties") if isinstance(rules, dict) else None
    if not isinstance(properties, dict) or not properties:
        return None
    names = [name for name in properties if isinstance(name, str)]
    if (named := telling_field(names)) is not None:
        return named
    enums = [name for name in names if isinstance(properties[name], dict) and "enum" in properties[name]]
    if len(enums) == 1:
        return enums[0]
    return names[0] if len(names) == 1 else None


def telling_field(names: Sequence[str]) -> str | None:
    """The name that says that its field holds an answer; None where there is none."""
    plain = {name.lower().replace("-", "_").replace(" ", "_"): name for name in reversed(names)}
    return next((plain[wanted] for wanted in ANSWER_FIELDS if wanted in plain), None)


def _last_run(found: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The texts of the last run of letters A, B, … that has at least two."""
    best: tuple[str, ...] = ()
    run: list[str] = []
    for letter, text in found:
        if letter == LETTERS[len(run)] if len(run) < len(LETTERS) else False:
            run.append(text)
        else:
            run = [text] if letter == "A" else []
        if len(run) >= 2:
            best = tuple(run)
    return best
