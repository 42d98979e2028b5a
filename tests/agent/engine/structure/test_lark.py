"""Lark grammars: what they accept, and what is refused."""

from __future__ import annotations

import pytest

from moe2.agent.engine.structure.constraint import GrammarError
from tests.agent.engine.structure.following import accepts

_LONG = "x" * 60_000


def test_a_grammar_is_followed() -> None:
    """Rules, terminals and a JSON schema inside."""
    grammar = 'start: GREETING " " object\nGREETING: "hello" | /hi+/\nobject: %json {"type": "object"}'
    assert accepts("lark", grammar, 'hiii {"a": 1}')
    assert not accepts("lark", grammar, "hello you")


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("start: /(/", "unclosed group"),
        ('other: "a"', "no start rule"),
        ('start: start "a"', "No text can follow"),
        ('start: "(' + "(" * 3000 + '"a"' + ")" * 3000, "lark|nested|lexer"),
        (f'start: A\nA: "{_LONG}"{{1000}}', "rule A has more than"),
        (f'start: B\nA: "{_LONG}"\nB: ("a" A){{1000}}', "rule B has more than"),
        ("start: /((a{1000}){1000}){1000}/", "rule start has more than"),
        (f'start: "{_LONG}"~1..1000', "rule start has more than"),
        ('start: %json {"x-guidance": {"lenient": true}, "uniqueItems": true}', "x-guidance"),
        ('start: %json {"uniqueItems": true}', "uniqueItems"),
        ('%llguidance {"no_forcing": false}\nstart: "a"', "%llguidance"),
        ("", "empty"),
    ],
)
def test_what_is_refused_has_its_reason(grammar: str, problem: str) -> None:
    """As llguidance says it, or as the bounds do."""
    with pytest.raises(GrammarError, match=problem):
        accepts("lark", grammar, "")


def test_a_dead_end_in_an_answer_is_an_error() -> None:
    """Where a grammar leads nowhere, the answer does not end as if it were complete."""
    with pytest.raises(GrammarError, match="No text can follow"):
        accepts("lark", 'start: "a" x\nx: x "b"', "a")
