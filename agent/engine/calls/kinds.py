"""PURE: of which JSON types a tool's argument may be, as far as its schema says.

Where a model writes arguments between marks, a text stands there without quotes: only the schema tells `5` the text
from 5 the number. What reads calls and what makes their grammar both ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ALL = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_MAX_DEPTH = 16
_FREE_KEYS = frozenset({"type", "title", "description", "default", "examples", "anyOf", "$comment", "deprecated"})


@dataclass(frozen=True)
class Kinds:
    """The types that an argument may have. choices: the texts that it is one of; None where it is any text."""

    types: frozenset[str] = _ALL
    choices: tuple[str, ...] | None = None
    is_plain: bool = True
    """Nothing else is said of a text: neither a pattern nor a length nor a format."""

    @property
    def is_text(self) -> bool:
        """It is a text, and nothing else."""
        return self.types == {"string"} and self.is_plain

    def allow(self, value: Any) -> bool:
        """Whether a JSON value is of one of the types."""
        match value:
            case bool():
                return "boolean" in self.types
            case int():
                return bool(self.types & {"integer", "number"})
            case float():
                return "number" in self.types or ("integer" in self.types and value.is_integer())
            case None:
                return "null" in self.types
            case str():
                return "string" in self.types
            case dict():
                return "object" in self.types
        return "array" in self.types


def kinds_of(schema: Any, key: str) -> Kinds:
    """Returns the types of the argument `key` of a tool with this schema; all of them where it does not say."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    node = properties.get(key) if isinstance(properties, dict) else None
    return _kinds(node, schema, 0)


def _kinds(node: Any, root: Any, depth: int) -> Kinds:
    if not isinstance(node, dict) or depth > _MAX_DEPTH:
        return Kinds()
    if isinstance(node.get("$ref"), str):
        return _kinds(_resolved(node["$ref"], root), root, depth + 1)
    if isinstance(node.get("enum"), list):
        return _of_values(node["enum"])
    if "const" in node:
        return _of_values([node["const"]])
    for combined in ("anyOf", "oneOf"):
        if isinstance(node.get(combined), list) and node[combined]:
            parts = [_kinds(part, root, depth + 1) for part in node[combined]]
            plain = all(part.is_plain and part.choices is None for part in parts)
            return Kinds(frozenset().union(*(part.types for part in parts)), is_plain=plain)
    stated = node.get("type")
    types = frozenset([stated] if isinstance(stated, str) else stated if isinstance(stated, list) else _ALL)
    return Kinds(types & _ALL or _ALL, is_plain=node.keys() <= _FREE_KEYS)


def _of_values(values: list[Any]) -> Kinds:
    if values and all(isinstance(value, str) for value in values):
        return Kinds(frozenset({"string"}), tuple(values))
    names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", list: "array"}
    return Kinds(frozenset(names.get(type(value), "object") for value in values) or _ALL, is_plain=False)


def _resolved(reference: str, root: Any) -> Any:
    if not reference.startswith("#"):
        return None
    node = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        node = node.get(step) if isinstance(node, Mapping) else None
    return node
