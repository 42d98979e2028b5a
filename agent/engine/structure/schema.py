"""PURE: JSON schemas before llguidance sees them: read, bounded, and rewritten where that changes nothing.

llguidance refuses keywords of JSON Schema that it does not know, and passes over those of no recent draft. Here, what
does not restrict anything is taken out, so that it is not refused for nothing, and what it would pass over although it
was meant to restrict is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from moe2.agent.engine.structure.constraint import GrammarError
from moe2.agent.engine.structure.expansion import check_regex

MAX_NESTING = 64
MAX_SUBSCHEMAS = 20_000

Schema = dict[str, Any] | bool

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_ONE = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
"""Keywords whose value is a schema (of `items`, in older drafts, also a list of them)."""
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose value is a map of schemas."""
_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Keywords whose value is a list of schemas."""
_ANNOTATIONS = frozenset(
    {
        "$comment",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "default",
        "deprecated",
        "description",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
"""Keywords that, by the specification, restrict nothing."""
_COUNTS = frozenset({"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"})
_REFUSED = {
    "disallow": "Use 'not' or list what is allowed.",
    "divisibleBy": "Use 'multipleOf'.",
    "extends": "Use 'allOf'.",
    "nullable": "Add 'null' to 'type'.",
    "x-guidance": "Leave it out.",
}
"""Keywords that llguidance would obey in its own way, or pass over although they were meant to restrict."""


def schema_of(source: str) -> Schema:
    """The schema in a JSON text, rewritten; `{}` is any JSON object. Raises `GrammarError`."""
    try:
        content = json.loads(source, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        detail = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise GrammarError(f"The JSON schema is not valid JSON: {detail}.") from error
    if not isinstance(content, dict | bool):
        raise GrammarError("The JSON schema is neither an object nor true nor false.")
    if content == {}:
        return dict(_ANY_OBJECT)
    _check_nesting(content)
    rewritten: Schema = _rewritten(content, "#")
    _check_finite(rewritten)
    return rewritten


def pointer_to(place: str, key: str | int) -> str:
    """The JSON pointer, as a URI's fragment, to what lies below a place under a key."""
    return f"{place}/{str(key).replace('~', '~0').replace('/', '~1')}"


def subschemas(node: Any, place: str = "#") -> Iterator[tuple[str, Schema]]:
    """(pointer, schema) of a schema and of every schema in it, each before those inside it."""
    waiting = [(place, node)]
    while waiting:
        place, node = waiting.pop()
        if isinstance(node, bool):
            yield place, node
        elif isinstance(node, dict):
            yield place, node
            waiting += reversed(list(_children(node, place)))


def _children(node: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        here = pointer_to(place, key)
        if key in _NAMED and isinstance(value, dict):
            yield from ((pointer_to(here, name), child) for name, child in value.items())
        elif (key in _LISTED or key == "items") and isinstance(value, list):
            yield from ((pointer_to(here, index), child) for index, child in enumerate(value))
        elif key in _ONE:
            yield here, value


def _rewritten(node: Any, place: str) -> Any:
    """The schema with the same meaning and no keyword that restricts nothing."""
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for key, value in node.items():
        here = pointer_to(place, key)
        if key in _REFUSED:
            raise GrammarError(f"The JSON schema has {key!r} at {place}, which cannot be used.", remedy=_REFUSED[key])
        if key in _ANNOTATIONS or _restricts_nothing(key, value, node):
            continue
        if key == "pattern" and isinstance(value, str):
            check_regex(value, f"regular expression at {here}")
        if key == "patternProperties" and isinstance(value, dict):
            for name in value:
                check_regex(name, f"regular expression at {here}")
        if key in _NAMED and isinstance(value, dict):
            found[key] = {name: _rewritten(child, pointer_to(here, name)) for name, child in value.items()}
        elif (key in _LISTED or key == "items") and isinstance(value, list):
            found[key] = [_rewritten(child, pointer_to(here, index)) for index, child in enumerate(value)]
        elif key in _ONE:
            found[key] = _rewritten(value, here)
        elif key in _COUNTS and isinstance(value, float) and value.is_integer():
            found[key] = int(value)
        else:
            found[key] = value
    return found


def _restricts_nothing(key: str, value: Any, node: Mapping[str, Any]) -> bool:
    """True where a document is valid with this keyword exactly when it is valid without it."""
    match key:
        case "uniqueItems":
            return value is False
        case "propertyNames" | "unevaluatedItems" | "unevaluatedProperties":
            return bool(value is True or value == {})
        case "not":
            return value is False
        case "if":
            return "then" not in node and "else" not in node
        case "then" | "else":
            return "if" not in node or value is True or bool(value == {})
        case "minContains" | "maxContains":
            return "contains" not in node or _restricts_nothing("contains", None, node)
        case "contains":
            return bool(node.get("minContains") == 0) and "maxContains" not in node
        case "dependentRequired" | "dependencies" | "dependentSchemas":
            return bool(value == {})
    return False


def _check_nesting(content: Any) -> None:
    """Raises `GrammarError` for a schema that is nested too deeply or has too many parts."""
    waiting = [(content, "#", 0)]
    count = 0
    while waiting:
        node, place, depth = waiting.pop()
        if depth > 2 * MAX_NESTING:
            raise GrammarError(f"The JSON schema is nested too deeply at {place[:200]}.", remedy="Flatten it.")
        if isinstance(node, dict):
            count += 1
            waiting += [(child, pointer_to(place, key), depth + 1) for key, child in node.items()]
        elif isinstance(node, list):
            waiting += [(child, pointer_to(place, index), depth + 1) for index, child in enumerate(node)]
    if count > MAX_SUBSCHEMAS:
        raise GrammarError(f"The JSON schema has more than {MAX_SUBSCHEMAS} objects.", remedy="Make it smaller.")


def _check_finite(root: Schema) -> None:
    """Raises `GrammarError` where every valid document would be endless, as with a required property whose schema is
    the whole schema again. References that lead nowhere are left to llguidance."""
    places = dict(subschemas(root))
    finite: set[str] = set()
    needs = {place: list(_needed(node, place)) for place, node in places.items()}
    users: dict[str, list[str]] = {}
    for place, groups in needs.items():
        for group in groups:
            for other in group:
                users.setdefault(other, []).append(place)
    waiting = list(places)
    while waiting:
        place = waiting.pop()
        if place not in finite and all(
            not group or any(other in finite or other not in places for other in group) for group in needs[place]
        ):
            finite.add(place)
            waiting += users.get(place, ())
    if "#" not in finite:
        endless = _endless(needs, finite, places)
        raise GrammarError(
            f"No document can follow the JSON schema: at {endless} it needs itself without end.",
            remedy="Make the property optional, or allow null.",
        )


def _endless(needs: Mapping[str, list[list[str]]], finite: set[str], places: Mapping[str, Schema]) -> str:
    """The place at which a schema that is needed refers back."""
    place, seen = "#", {"#"}
    while True:
        group = next(
            group for group in needs[place] if group and not any(o in finite or o not in places for o in group)
        )
        if group[0] in seen:
            return place
        place = group[0]
        seen.add(place)


def _needed(node: Schema, place: str) -> Iterator[list[str]]:
    """Groups of places: a document that follows the schema also follows one of each group, there or in a part of it."""
    if isinstance(node, bool):
        return
    reference = node.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        yield [reference]
    for key in ("anyOf", "oneOf"):
        if isinstance(node.get(key), list):
            yield [pointer_to(pointer_to(place, key), index) for index in range(len(node[key]))]
    if isinstance(node.get("allOf"), list):
        for index in range(len(node["allOf"])):
            yield [pointer_to(pointer_to(place, "allOf"), index)]
    if node.get("type") == "object":
        yield from ([here] for here in _required(node, place))
    least = node.get("minItems")
    if node.get("type") == "array" and isinstance(least, int) and least > 0:
        if node.get("prefixItems"):
            yield [pointer_to(pointer_to(place, "prefixItems"), 0)]
        elif isinstance(node.get("items"), dict):
            yield [pointer_to(place, "items")]


def _required(node: Mapping[str, Any], place: str) -> Iterator[str]:
    """The places of the schemas of the properties that an object must have."""
    properties, required = node.get("properties"), node.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        for name in required:
            if isinstance(name, str) and name in properties:
                yield pointer_to(pointer_to(place, "properties"), name)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
