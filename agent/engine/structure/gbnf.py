"""PURE: GBNF, llama.cpp's form of a grammar, into the Lark form that llguidance reads.

llguidance brings a converter, which changes what some grammars mean: it breaks `\\u` escapes and repeated repetitions,
lets `.` not match a line's end and `[a&&b]` match nothing, takes rules for equal whose names differ in case, and
matches every rule as far as it goes, so that `word ::= [a-z]+` before "x" never leaves an x.

Here a grammar without recursion becomes one regular expression, which means exactly the same. In one that recurses,
literals, classes, repetitions and rules that do not recurse are words: each is matched as far as it goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from moe2.agent.engine.structure.constraint import GrammarError
from moe2.agent.engine.structure.expansion import MAX_EXPANDED_CHARACTERS

MAX_RULES = 10_000
MAX_NESTING = 64
MAX_REPETITIONS = 100_000

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_COUNTS = re.compile(r"\{\s*(\d{1,18})\s*(?:(,)\s*(\d{1,18})?\s*)?\}")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_HEXADECIMAL = {
    "x": re.compile(r"[0-9a-fA-F]{2}"),
    "u": re.compile(r"[0-9a-fA-F]{4}"),
    "U": re.compile(r"[0-9a-fA-F]{8}"),
}
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"} | {mark: mark for mark in '\\"[]-^/'}


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Class:
    """One character of these inclusive ranges, or with `inverted` one of all others."""

    ranges: tuple[tuple[str, str], ...]
    inverted: bool


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str
    position: int


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    options: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repetition:
    part: _Node
    least: int
    most: int | None


_Node = _Text | _Class | _Reference | _Sequence | _Choice | _Repetition


def lark_of_gbnf(source: str) -> str:
    """The Lark grammar of a GBNF grammar. Raises `GrammarError` naming line and column."""
    parser = _Parser(source)
    rules = parser.rules()
    if "root" not in rules:
        raise GrammarError("The grammar has no rule named root.", remedy='Begin with root ::= "...".')
    for node in rules.values():
        for part in _parts(node):
            if isinstance(part, _Reference) and part.name not in rules:
                raise parser.error(f"There is no rule named {part.name}", part.position)
    recursive = _recursive(rules)
    _check_productive(rules)
    _check_expanded(rules, recursive)
    return _Writer(rules, recursive).text()


class _Parser:
    """Recursive descent, no deeper than `MAX_NESTING`."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def error(self, problem: str, position: int | None = None) -> GrammarError:
        position = self._at if position is None else position
        line = self._source.count("\n", 0, position) + 1
        column = position - self._source.rfind("\n", 0, position)
        return GrammarError(
            f"The grammar is invalid at line {line}, column {column}: {problem}.", remedy="Check it against GBNF."
        )

    def rules(self) -> dict[str, _Node]:
        rules: dict[str, _Node] = {}
        self._skip(_BLANK_LINES)
        while self._at < len(self._source):
            position = self._at
            name = self._name()
            self._skip(_BLANK)
            if not self._source.startswith("::=", self._at):
                raise self.error("::= is expected")
            self._at += 3
            self._skip(_BLANK_LINES)
            if name in rules:
                raise self.error(f"The rule {name} is there twice", position)
            if len(rules) == MAX_RULES:
                raise self.error(f"There are more than {MAX_RULES} rules", position)
            rules[name] = self._choice(0)
            if self._at < len(self._source) and self._source[self._at] not in "\r\n":
                raise self.error(f"{self._source[self._at]!r} is not expected")
            self._skip(_BLANK_LINES)
        return rules

    def _skip(self, blank: re.Pattern[str]) -> None:
        match = blank.match(self._source, self._at)
        self._at = match.end() if match else self._at

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _name(self) -> str:
        match = _NAME.match(self._source, self._at)
        if match is None:
            raise self.error("A rule's name is expected")
        self._at = match.end()
        return match.group()

    def _choice(self, depth: int) -> _Node:
        if depth > MAX_NESTING:
            raise self.error(f"It is nested more than {MAX_NESTING} deep")
        options = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip(_BLANK_LINES)
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _sequence(self, depth: int) -> _Node:
        blank = _BLANK_LINES if depth else _BLANK
        parts: list[_Node] = []
        while (part := self._part(depth)) is not None:
            self._skip(blank)
            parts.append(self._repeated(part))
            self._skip(blank)
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _part(self, depth: int) -> _Node | None:
        position = self._at
        character = self._peek()
        if character == '"':
            return self._literal()
        if character == "[":
            return self._class()
        if character == ".":
            self._at += 1
            return _Class((), inverted=True)
        if character == "(":
            self._at += 1
            self._skip(_BLANK_LINES)
            part = self._choice(depth + 1)
            if self._peek() != ")":
                raise self.error(") is expected")
            self._at += 1
            return part
        if character and _NAME.match(character):
            return _Reference(self._name(), position)
        if character and character not in "|)\r\n":
            raise self.error(f"{character!r} is not expected")
        return None

    def _literal(self) -> _Text:
        self._at += 1
        found: list[str] = []
        while self._peek() != '"':
            found.append(self._character())
        self._at += 1
        return _Text("".join(found))

    def _class(self) -> _Class:
        start = self._at
        self._at += 1
        inverted = self._peek() == "^"
        self._at += inverted
        ranges: list[tuple[str, str]] = []
        while self._peek() != "]":
            position = self._at
            first = last = self._character()
            if self._peek() == "-" and self._source[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._character()
            if last < first:
                raise self.error("The range is empty: its end lies before its start", position)
            ranges.append((first, last))
        self._at += 1
        if not ranges and not inverted:
            raise self.error("An empty class matches nothing", start)
        return _Class(tuple(ranges), inverted)

    def _character(self) -> str:
        character = self._peek()
        if not character or character in "\r\n":
            raise self.error("The literal or class has no end")
        if character != "\\":
            self._at += 1
            return character
        position = self._at
        kind = self._source[self._at + 1 : self._at + 2]
        self._at += 2
        if (digits := _HEXADECIMAL.get(kind)) is not None:
            match = digits.match(self._source, self._at)
            code = -1 if match is None else int(match.group(), 16)
            if match is None or code > 0x10FFFF or 0xD800 <= code <= 0xDFFF or not code:
                raise self.error(f"\\{kind} is not followed by a character's hexadecimal number", position)
            self._at = match.end()
            return chr(code)
        if kind not in _ESCAPES:
            raise self.error(f"There is no escape \\{kind}", position)
        return _ESCAPES[kind]

    def _repeated(self, part: _Node) -> _Node:
        """The part with the repetitions that follow it; each further one repeats the former."""
        for _ in range(MAX_NESTING):
            position = self._at
            character = self._peek()
            if character in ("*", "+", "?"):
                self._at += 1
                part = _Repetition(part, int(character == "+"), 1 if character == "?" else None)
            elif character == "{":
                part = _Repetition(part, *self._counts(position))
            else:
                return part
            self._skip(_BLANK)
        raise self.error(f"More than {MAX_NESTING} repetitions follow each other")

    def _counts(self, position: int) -> tuple[int, int | None]:
        match = _COUNTS.match(self._source, self._at)
        if match is None:
            raise self.error("{ is not followed by one or two counts and }", position)
        self._at = match.end()
        least = int(match.group(1))
        most = int(match.group(3)) if match.group(3) else None if match.group(2) else least
        if most is not None and most < least:
            raise self.error(f"The repetition {match.group()} ends before it begins", position)
        if max(least, most or 0) > MAX_REPETITIONS:
            raise self.error(f"The repetition {match.group()} goes beyond {MAX_REPETITIONS}; use * or +", position)
        return least, most


def _parts(node: _Node) -> Iterator[_Node]:
    """The node and all nodes in it, each before those inside it."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        match node:
            case _Sequence(parts=inner) | _Choice(options=inner):
                waiting += inner
            case _Repetition(part=part):
                waiting.append(part)


def _names_in(node: _Node) -> set[str]:
    return {part.name for part in _parts(node) if isinstance(part, _Reference)}


def _recursive(rules: dict[str, _Node]) -> set[str]:
    """The rules that reach a circle: what remains when rules that need no others are taken away, again and again."""
    needs = {name: _names_in(node) for name, node in rules.items()}
    users = _users(needs)
    ready = [name for name, needed in needs.items() if not needed]
    while ready:
        done = ready.pop()
        for user in users[done]:
            needs[user].discard(done)
            if not needs[user]:
                ready.append(user)
    return {name for name, needed in needs.items() if needed}


def _users(needs: dict[str, set[str]]) -> dict[str, list[str]]:
    """The rules that use each rule."""
    users: dict[str, list[str]] = {name: [] for name in needs}
    for name, needed in needs.items():
        for other in needed:
            users[other].append(name)
    return users


def _check_productive(rules: dict[str, _Node]) -> None:
    """Raises `GrammarError` where a rule that root needs can never come to an end, as in `root ::= root "a"`."""
    productive: set[str] = set()

    def ends(node: _Node) -> bool:
        match node:
            case _Sequence(parts=parts):
                return all(map(ends, parts))
            case _Choice(options=options):
                return any(map(ends, options))
            case _Repetition(part=part, least=least):
                return not least or ends(part)
            case _Reference(name=name):
                return name in productive
        return True

    # A rule is looked at again only when one that it uses turned out to end.
    users = _users({name: _names_in(node) for name, node in rules.items()})
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in productive and ends(rules[name]):
            productive.add(name)
            waiting += users[name]
    endless = [name for name in _reached(rules) if name not in productive]
    if endless:
        raise GrammarError(
            f"No text can follow the grammar's rule {endless[0]}: it never ends.", remedy="Give it an option that ends."
        )


def _check_expanded(rules: dict[str, _Node], recursive: set[str]) -> None:
    """Raises `GrammarError` where literals and rules that do not recurse become too long when written out."""
    sizes: dict[str, int] = dict.fromkeys(recursive, 1)

    def size(node: _Node) -> int:
        match node:
            case _Text(text=text):
                return len(text)
            case _Sequence(parts=inner) | _Choice(options=inner):
                return sum(map(size, inner)) + 1
            case _Repetition(part=part, least=least, most=most):
                return size(part) * max(least, most or 1, 1)
            case _Reference(name=name):
                return sizes[name]
        return 1

    for name in [*_in_order(rules, recursive), *recursive]:
        sizes[name] = size(rules[name])
        if sizes[name] > MAX_EXPANDED_CHARACTERS:
            raise GrammarError(
                f"The rule {name} has more than {MAX_EXPANDED_CHARACTERS} characters when its repetitions and the "
                "rules that it uses are written out.",
                remedy="Repeat less often, or use * and +.",
            )
    if sum(sizes.values()) > 4 * MAX_EXPANDED_CHARACTERS:
        raise GrammarError("The grammar's rules are too long when they are written out.", remedy="Use fewer rules.")


def _in_order(rules: dict[str, _Node], recursive: set[str]) -> list[str]:
    """The rules that do not recurse, each after those that it needs."""
    order: list[str] = []
    seen = set(recursive)
    for start in rules:
        if start in seen:
            continue
        seen.add(start)
        path = [(start, iter(_names_in(rules[start])))]
        while path:
            name, needed = path[-1]
            missing = next((other for other in needed if other not in seen), None)
            if missing is None:
                path.pop()
                order.append(name)
            else:
                seen.add(missing)
                path.append((missing, iter(_names_in(rules[missing]))))
    return order


class _Writer:
    """Lark text; a name in capitals is a regular expression, any other a rule."""

    def __init__(self, rules: dict[str, _Node], recursive: set[str]) -> None:
        self._rules = rules
        self._recursive = recursive
        self._names = {
            name: "start" if name == "root" and name in recursive else f"{'r' if name in recursive else 'R'}{place}"
            for place, name in enumerate(rules)
        }
        self._words: list[str] = []
        """Repetitions that became regular expressions of their own."""

    def text(self) -> str:
        reached = _reached(self._rules)
        lines = [] if "root" in self._recursive else [f"start: {self._names['root']}"]
        for name in reached:
            node = self._rules[name]
            write = self._rule if name in self._recursive else self._expression
            lines.append(f"{self._names[name]}: {write(node)}")
        lines += [f"W{place}: {word}" for place, word in enumerate(self._words)]
        return "\n".join(lines)

    def _expression(self, node: _Node) -> str:
        """A node as part of a regular expression."""
        match node:
            case _Text(text=text):
                return _quoted(text)
            case _Class():
                return _class_text(node)
            case _Reference(name=name):
                return self._names[name]
            case _Sequence(parts=parts):
                return f"({' '.join(map(self._expression, parts))})" if parts else '""'
            case _Choice(options=options):
                return f"({' | '.join(map(self._expression, options))})"
            case _Repetition(part=part):
                return f"({self._expression(part)}){_counts_text(node)}"

    def _rule(self, node: _Node) -> str:
        """A node as part of a rule that recurses."""
        match node:
            case _Sequence(parts=parts):
                return f"({' '.join(map(self._rule, parts))})" if parts else '""'
            case _Choice(options=options):
                return f"({' | '.join(map(self._rule, options))})"
            case _Repetition(part=part):
                if _names_in(node) & self._recursive:
                    return f"({self._rule(part)}){_counts_text(node)}"
                self._words.append(self._expression(node))
                return f"W{len(self._words) - 1}"
        return self._expression(node)


def _reached(rules: dict[str, _Node]) -> list[str]:
    """The rules that root needs, root first."""
    found = {"root": None}
    waiting = ["root"]
    while waiting:
        new = sorted(_names_in(rules[waiting.pop()]) - found.keys())
        found.update(dict.fromkeys(new))
        waiting += new
    return list(found)


def _quoted(text: str) -> str:
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() or ord(character) > 0xFFFF else f"\\u{ord(character):04x}"


def _class_text(node: _Class) -> str:
    if not node.ranges:
        return r"/[\u{0}-\u{10FFFF}]/"
    inner = "".join(f"\\u{{{ord(first):x}}}-\\u{{{ord(last):x}}}" for first, last in node.ranges)
    return f"/[{'^' if node.inverted else ''}{inner}]/"


def _counts_text(node: _Repetition) -> str:
    if node.most is None:
        return ("*", "+")[node.least] if node.least < 2 else f"{{{node.least},}}"
    return "?" if (node.least, node.most) == (0, 1) else f"{{{node.least},{node.most}}}"
