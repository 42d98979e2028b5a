"""GBNF grammars: what they accept, what is refused and where."""

from __future__ import annotations

import pytest

from moe2.agent.engine.structure.constraint import GrammarError
from tests.agent.engine.structure.following import accepts

_DOUBLING = "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(29)) + '\nr29 ::= "a"\nroot ::= r0'
_JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws  # as llama.cpp has it
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
""".replace(r"\x00", r"\x01")


@pytest.mark.parametrize(
    ("grammar", "valid", "invalid"),
    [
        ('root ::= "yes" | "no"', "yes", "ye"),
        ('root ::= [a-z]+ "x"', "abx", "ab"),
        ('root ::= word "x"\nword ::= [a-z]+', "abx", "ab"),
        ('root ::= ("ab" | "abc") "cd"', "abcd", "abc"),
        (r'root ::= "\u0041" [\x42-\U00000043] .', "AB\n", "BA\n"),
        ("root ::= [a&&b]", "&", "c"),
        ('root ::= [^"\\\\]+', "a/b", '"'),
        ('root ::= "a" A\nA ::= "c"\na ::= "d"', "ac", "ad"),
        ('root ::= ("a"{2}){3}', "aaaaaa", "aaaaa"),
        ('root ::= "a"{2,}', "aaa", "a"),
        ('root ::= ""', "", "a"),
        ('root ::= root "a" | "b"', "baa", "a"),
        ('root ::= x\nx ::= "(" x ")" | ""', "(())", "(()"),
        ('root ::= (" " root)?', "  ", "a"),
        ("root ::= [ab-]+ # a comment\n\n", "a-b", "c"),
        ('root ::= (\n  "a" |\n  "b"\n)', "b", "c"),
        ('root ::= "é" [à-ö]', "éé", "éa"),
        ("root ::= [a-z]{0,100000}", "abc", "A"),
        (_JSON, '{"a": [1, -2.5e3, "x\\n\\u00e9"], "b": {}}', '{"a": 01x}'),
    ],
)
def test_a_grammar_is_followed_exactly(grammar: str, valid: str, invalid: str) -> None:
    """A text that follows it is accepted whole, one that does not is rejected."""
    assert accepts("gbnf", grammar, valid)
    assert not accepts("gbnf", grammar, invalid)


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("root ::= [z-a]+", "line 1, column 11: The range is empty"),
        ('root ::= "a"{2,1}', r"line 1, column 13: The repetition \{2,1\} ends before it begins"),
        ('root ::= "b"\nx ::= "a"{1000000000}', "line 2, column 10: The repetition .* goes beyond"),
        ('root ::= ("a"{1000}){1000}', "rule root has more than"),
        ('root ::= "' + "x" * 60_000 + '"{1000}', "rule root has more than"),
        (_DOUBLING, "rule r12 has more than"),
        ("root ::= " + "(" * 1000 + '"a"' + ")" * 1000, "nested more than"),
        ('root ::= "a"' + "?" * 1000, "repetitions follow each other"),
        ("root := nonsense", "line 1, column 6: ::= is expected"),
        ('other ::= "a"', "no rule named root"),
        ("", "empty"),
        (" \n", "empty"),
        ('root ::= "a\0"', "NUL"),
        ('root ::= "a\ud800"', "surrogate"),
        (r'root ::= "\ud800"', "not followed by a character"),
        ('root ::= "a', "has no end"),
        ("root ::= [a", "has no end"),
        ("root ::= []", "matches nothing"),
        (r'root ::= "\q"', "no escape"),
        ('root ::= "a" )', "not expected"),
        ('root ::= ("a"', "is expected"),
        ("root ::= nowhere", "line 1, column 10: There is no rule named nowhere"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: The rule root is there twice"),
        ('root ::= root "a"', "rule root: it never ends"),
        ('root ::= "a" x | "b"\nx ::= y\ny ::= x', "rule x: it never ends"),
        ('root ::= "a" | ' * 60_000, "bytes, more than"),
        ("root ::= <think>", "not expected"),
    ],
)
def test_what_is_refused_is_named_with_its_place(grammar: str, problem: str) -> None:
    """Line and column, or the rule."""
    with pytest.raises(GrammarError, match=problem):
        accepts("gbnf", grammar, "")
