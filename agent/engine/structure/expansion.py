"""PURE: how long regular expressions and Lark grammars become when their repetitions are written out.

An automaton is built from what is written out, so a short text can cost minutes and gigabytes. The estimate is rough:
it knows groups, counts and names, and takes whatever else it meets for one character.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from moe2.agent.engine.structure.constraint import GrammarError

MAX_EXPANDED_CHARACTERS = 200_000
"""Of one regular expression or rule. About 0.25 s of one core of an x86-64 server in llguidance 1.9."""

_COUNTS = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}|~\s*(\d+)(?:\s*\.\.\s*(\d+))?")
_REGEX_ITEM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_LARK_ITEM = re.compile(r'//[^\n]*|"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[a-z]*|[A-Za-z_][A-Za-z_0-9]*|\S')
_DEFINITION = re.compile(r"^[ \t]*[?!]*([A-Za-z_][A-Za-z_0-9]*)(?:\[[^\]\n]*\])?(?:\.-?\d+)?[ \t]*:", re.MULTILINE)


def check_regex(regex: str, where: str) -> None:
    """Raises `GrammarError` for a regular expression that is too long when it is written out."""
    if _regex_characters(regex) > MAX_EXPANDED_CHARACTERS:
        raise _too_long(where)


def check_lark(source: str) -> None:
    """Raises `GrammarError` for a Lark grammar with a rule that is too long when it is written out."""
    definitions = list(_DEFINITION.finditer(source))
    ends = [definition.start() for definition in definitions[1:]] + [len(source)]
    bodies = {
        definition.group(1): source[definition.end() : end] for definition, end in zip(definitions, ends, strict=True)
    }
    # Only names in capitals become part of one automaton.
    bodies = {name: body for name, body in bodies.items() if name.lstrip("_")[:1].isupper() or name == "start"}
    sizes = dict.fromkeys(bodies, 1)
    for _ in range(len(bodies)):
        found = {name: _lark_characters(body, sizes) for name, body in bodies.items()}
        longest = max(found, key=found.__getitem__)
        if found[longest] > MAX_EXPANDED_CHARACTERS:
            raise _too_long(f"rule {longest}")
        if found == sizes:
            return
        sizes = found


def _too_long(where: str) -> GrammarError:
    return GrammarError(
        f"The {where} has more than {MAX_EXPANDED_CHARACTERS} characters when its repetitions are written out.",
        remedy="Repeat less often, or use * and +.",
    )


def _regex_characters(regex: str) -> int:
    return _characters(regex, _REGEX_ITEM, lambda _: 1)


def _lark_characters(body: str, sizes: dict[str, int]) -> int:
    def size(item: str) -> int:
        if item.startswith("//"):
            return 0
        if item[0] == '"' and len(item) > 1:
            return len(item) - 2
        if item[0] == "/" and len(item) > 1:
            return _regex_characters(item[1 : item.rindex("/")])
        return sizes.get(item, 1)

    return _characters(body, _LARK_ITEM, size)


def _characters(text: str, pattern: re.Pattern[str], size_of: Callable[[str], int]) -> int:
    """The sum of the sizes of all items, those in repeated groups as often as they are repeated."""
    groups = [0]
    last = 0
    at = 0
    while at < len(text):
        counts = _COUNTS.match(text, at)
        if counts is not None:
            times = max((int(count[:9]) for count in counts.groups() if count), default=1)
            groups[-1] += last * (max(times, 1) - 1)
            last *= max(times, 1)
            at = counts.end()
            continue
        item = pattern.match(text, at)
        if item is None:
            at += 1
            continue
        at = item.end()
        match item.group():
            case "(":
                groups.append(0)
            case ")":
                last = groups.pop() if len(groups) > 1 else 0
                groups[-1] += last
            case "?" | "*" | "+" | "|":
                pass
            case other:
                last = size_of(other)
                groups[-1] += last
    return sum(groups)
