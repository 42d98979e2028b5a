"""PURE: the grammars of calls in the forms that models write them in (`moe2.agent.engine.calls.forms`).

Each is a Lark grammar with a rule `calls`, which begins with the form's first mark. Marks that are control tokens stand
there as tokens, so that no text spells them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe2.agent.engine.calls.forms import CallForm, Style, atoms
from moe2.agent.engine.calls.kinds import kinds_of
from moe2.agent.engine.structure.toolcall import call_schema, moved

Written = Callable[[Any], str]
"""Writes a JSON schema in Lark."""
_ROOT = "moe2-parameters"
_NAMES = frozenset({"title", "description", "$defs", "definitions", "$schema"})
_SAYS = _NAMES | {"type", "properties", "required", "additionalProperties"}
"""Keywords of parameters that a list of single arguments keeps to."""


@dataclass
class FormGrammar:
    """The grammar of calls in one form.

    arguments: the schema of each tool's arguments, by its name. parallel: there may be several calls.
    """

    form: CallForm
    controls: Mapping[str, int]
    arguments: Mapping[str, Any]
    parallel: bool
    written: Written
    rules: list[str] = field(default_factory=list)

    def lark(self) -> tuple[str, list[str]]:
        """Returns the calls in Lark from behind the first mark on, and the rules of Lark that they refer to."""
        match self.form.style:
            case Style.OBJECTS:
                rest = self._objects()
            case Style.PYTHON:
                rest = self._python()
            case _:
                rest = self._items()
        return rest, self.rules

    def mark(self) -> str:
        """Returns the mark that opens a call, as a Lark grammar writes it."""
        return self.text(self.form.opening.strip() or self.form.head.strip())

    def text(self, *texts: str) -> str:
        """Returns texts as a Lark grammar writes them, one after another."""
        parts = [atom for text in texts for atom in atoms(text, self.controls)]
        return " ".join(f"<[{part}]>" if isinstance(part, int) else json.dumps(part) for part in parts)

    def _objects(self) -> str:
        form = self.form
        schema = call_schema(self.arguments, name_key=form.name_key, arguments_key=form.arguments_key)
        self.rules.append(f"call: {self.written(schema)}")
        closing = self.text(form.closing.strip())
        if form.is_list:
            more = ' (WS "," WS call)*' if self.parallel else ""
            return f'WS "[" WS call{more} WS "]" {closing and "WS "}{closing}'
        more = ' (WS ";" WS call)*' if self.parallel and not form.each else ""
        return self._repeated(f"WS call{more} {closing and 'WS '}{closing}")

    def _items(self) -> str:
        """Calls with a name, whose arguments stand behind it, as JSON or one by one."""
        form = self.form
        heads, others = [], []
        for place, (name, schema) in enumerate(self.arguments.items()):
            self.rules.append(f"rest_{place}: {self._rest(place, name, schema)}")
            opened = form.opening[len(form.opening.strip()) :] if form.opening else ""
            heads.append(self.text(opened + (form.head if form.opening else "") + name) + f" rest_{place}")
            others.append(self.text(form.head + name) + f" rest_{place}")
        first, other = f"({' | '.join(heads)})", f"({' | '.join(others)})"
        closing = self.text(form.closing)
        if form.each:
            return self._repeated(f"{first} {closing}")
        more = f" (WS {other})*" if self.parallel else ""
        return f"{first}{more}" + (f" WS {closing}" if closing else "")

    def _repeated(self, one: str) -> str:
        """A form whose calls have marks of their own around each of them: after the first mark, one or more."""
        if not (self.parallel and self.form.each):
            return one
        self.rules.append(f"one: {one}")
        return f"one (WS {self.mark()} one)*"

    def _rest(self, place: int, name: str, schema: Any) -> str:
        """What follows a call's name."""
        form = self.form
        if form.style is not Style.PARAMETERS or not is_said_by_arguments(schema):
            return f"{self.text(form.neck)} {self.written(schema)} {self.text(form.tail)}"
        given = [self._parameter(f"value_{place}_{nth}", key, schema) for nth, key in enumerate(_keys(schema))]
        wanted = _required(schema)
        written = " ".join(f"({one})" + ("" if key in wanted else "?") for key, one in given)
        if not _is_listed(schema):
            written = f"{written} ({self._parameter(f'value_{place}', None, schema)[1]})*"
        return f"{self.text(form.neck)} {written} {self.text(form.tail)}"

    def _parameter(self, rule: str, key: str | None, schema: Any) -> tuple[str, str]:
        """An argument with its marks. key: None for any name."""
        before, between, behind = self.form.parameter
        if key is None:
            self.rules.append(f"{rule}: {self._raw(behind)}")
            self.rules.append(f"{rule}_name: /[A-Za-z0-9_.-]+/")
            return "", f"{self.text(before)} {rule}_name {self.text(between)} {rule}"
        kinds = kinds_of(schema, key)
        if kinds.choices is not None:
            ways = " | ".join(f"{self.text(choice + behind)}" for choice in kinds.choices)
            self.rules.append(f"{rule}: {ways}")
        elif kinds.is_plain and kinds.types <= {"string", "null"} and "string" in kinds.types:
            self.rules.append(f"{rule}: {self._raw(behind)}")
        else:
            self.rules.append(f"{rule}: {self.written(_alone(schema, key))} {self.text(behind)}")
        return key, f"{self.text(before + key + between)} {rule}"

    def _raw(self, behind: str) -> str:
        """Any text up to the mark behind it."""
        first = atoms(behind, self.controls)[0]
        if isinstance(first, int):
            return f"TEXT {self.text(behind)}"
        rule = f"raw_{len(self.rules)}"
        self.rules.append(f"{rule}[lazy]: TEXT {json.dumps(behind)}")
        return rule

    def _python(self) -> str:
        """A list of calls with arguments by their names. Where no mark begins it, it begins as no text does."""
        calls, firsts = [], []
        for place, (name, schema) in enumerate(self.arguments.items()):
            self.rules.append(f"words_{place}: {self._words(place, schema)}")
            calls.append(f"{json.dumps(name + '(')} words_{place}")
            self.rules.append(rf"head_{place}[lazy]: /\s*\[\s*{literal(name)}\(/")
            firsts.append(f"head_{place} words_{place}")
        self.rules.append(f"call: {' | '.join(calls)}")
        more = ' (WS "," WS call)*' if self.parallel else ""
        first = '"[" call' if self.form.opening else f"({' | '.join(firsts)})"
        return f'{first}{more} "]" {self.text(self.form.closing)}'

    def _words(self, place: int, schema: Any) -> str:
        if not is_said_by_arguments(schema):
            return f'{self.written(schema)} ")"'
        if not _is_listed(schema):
            self.rules.append(f"word_{place}: /[A-Za-z_][A-Za-z0-9_]*=/ {self.written({})}")
            return f'(word_{place} ("," WS word_{place})*)? ")"'
        values = []
        for nth, key in enumerate(_keys(schema)):
            self.rules.append(f"word_{place}_{nth}: {json.dumps(key + '=')} {self.written(_alone(schema, key))}")
            values.append((f"word_{place}_{nth}", key in _required(schema)))
        return f'{_listed(values)} ")"'


def _keys(schema: Any) -> Sequence[str]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return tuple(properties) if isinstance(properties, dict) else ()


def _required(schema: Any) -> frozenset[str]:
    wanted = schema.get("required") if isinstance(schema, dict) else None
    return frozenset(wanted) if isinstance(wanted, list) else frozenset()


def _is_listed(schema: Any) -> bool:
    """Whether the schema names every argument that there may be."""
    return isinstance(schema, dict) and schema.get("additionalProperties") is False


def is_said_by_arguments(schema: Any) -> bool:
    """Whether all that a schema asks of a call's arguments can be asked of each by itself. Where it cannot, the call
    has them as one JSON object."""
    return isinstance(schema, dict) and schema.keys() <= _SAYS and _required(schema) <= frozenset(_keys(schema))


def _alone(schema: Any, key: str) -> Any:
    """The schema of one argument, with what it refers to."""
    here = f"#/$defs/{_ROOT}"
    step = key.replace("~", "~0").replace("/", "~1")
    return {"$defs": {_ROOT: moved(schema, here)}, "$ref": f"{here}/properties/{step}"}


def _listed(values: Iterable[tuple[str, bool]]) -> str:
    """Values with commas between them, of which some may be left out; those that may not come first."""
    wanted = [value for value, is_wanted in values if is_wanted]
    free = [value for value, is_wanted in values if not is_wanted]
    if wanted:
        return ' "," WS '.join(wanted) + "".join(f' ("," WS {value})?' for value in free)
    ways = [value + "".join(f' ("," WS {other})?' for other in free[nth + 1 :]) for nth, value in enumerate(free)]
    return f"({' | '.join(ways)})?" if ways else ""


def literal(text: str) -> str:
    """Returns a regular expression of a text."""
    return "".join(letter if letter.isalnum() else rf"\x{{{ord(letter):x}}}" for letter in text)
