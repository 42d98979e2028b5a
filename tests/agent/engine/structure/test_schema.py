"""JSON schemas: what they accept, what is refused and where."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moe2.agent.engine.structure.constraint import GrammarError
from moe2.agent.engine.structure.schema import schema_of
from tests.agent.engine.structure.following import accepts, schema_accepts

_NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
_LIST = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "object", "properties": {"poem": {"type": "string"}}}, r'{"poem": "a\nb"}', '{"poem": "a\nb"}'),
        ({"type": "string", "pattern": "^yes|no$"}, '"yes"', '"yes'),
        ({"type": "integer", "minimum": 3, "maximum": 7}, "3", "500"),
        ({"type": ["object", "null"], "properties": {"a": {"type": "integer"}}}, '{"a": 1}', '{"a": "x"}'),
        ({"type": ["object", "null"], "properties": {"a": {"type": "integer"}}}, "null", "1"),
        (_LIST, '{"next": {"next": {}}}', '{"next": 1}'),
        (_NODE, '{"next": {"next": {}}}', '{"other": 1}'),
        ({"type": "string", "pattern": r"^\d+$"}, '"12"', '"1x"'),
        ({"enum": ['a"b', "c\\d"]}, r'"a\"b"', '"a"b"'),
        ({"type": "object", "properties": {"x": {}}, "required": ["x"]}, '{"x": [1, null]}', "{}"),
        ({"type": "string", "maxLength": 2000}, '"' + "a" * 2000 + '"', '"' + "a" * 2001 + '"'),
        ({"type": "object", "properties": {"a": True, "b": False}}, '{"a": 1}', '{"b": 1}'),
        (True, "[1]", "[1"),
        ({}, '{"any": "object"}', "[1]"),
        ({"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "maximum": 3}, "1", "5"),
        (
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                    {"minProperties": 1},
                ]
            },
            '{"a": 1}',
            "{}",
        ),
        ({"enum": list(range(5000))}, "4999", "5000"),
        ({"type": "string", "minLength": 2.0}, '"ab"', '"a"'),
    ],
)
def test_a_schema_is_followed_exactly(schema: Any, valid: str, invalid: str) -> None:
    """A document that follows it is accepted whole, one that does not is rejected."""
    assert schema_accepts(schema, valid)
    assert not schema_accepts(schema, invalid)


@pytest.mark.parametrize(
    "keywords",
    [
        {"uniqueItems": False},
        {"title": "t", "description": "d", "default": 1, "examples": [1], "deprecated": True},
        {"contentMediaType": "application/json", "contentSchema": {"not": {}}},
        {"if": {"minimum": 3}},
        {"then": False, "else": False},
        {"minContains": 3, "maxContains": 1},
        {"contains": {}, "minContains": 0},
        {"propertyNames": True, "unevaluatedProperties": {}, "not": False, "dependentRequired": {}},
    ],
)
def test_keywords_that_restrict_nothing_are_no_reason_to_refuse(keywords: dict[str, Any]) -> None:
    """They are left out, and the rest of the schema stays what it was."""
    assert schema_of(json.dumps({"type": "integer", **keywords})) == {"type": "integer"}


def test_properties_named_like_annotations_stay() -> None:
    """A property may have the name of a keyword."""
    schema = {"type": "object", "properties": {"title": {"type": "string", "title": "t"}, "if": {}}}
    assert schema_of(json.dumps(schema)) == {"type": "object", "properties": {"title": {"type": "string"}, "if": {}}}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"properties": {"a": {"items": {"uniqueItems": True}}}}, "#/properties/a/items/uniqueItems"),
        ({"properties": {"a/b~": {"anyOf": [{"type": "null"}, {"not": {}}]}}}, "#/properties/a~1b~0/anyOf/1/not"),
        ({"properties": {"a": {"if": {}, "then": {"minimum": 1}}}}, "#/properties/a/if"),
        ({"items": {"pattern": "("}}, "#/items/pattern"),
        ({"items": {"pattern": "(?=a)b"}}, "#/items/pattern"),
        ({"items": {"pattern": "(" + "ab" * 30_000 + "){1000}"}}, "#/items/pattern"),
        ({"items": {"pattern": "a{1000000000}"}}, "#/items/pattern"),
        ({"items": {"format": "nonsense"}}, "#/items/format"),
        ({"items": {"type": "nonsense"}}, "#/items/type"),
        ({"items": {"multipleOf": 0}}, "#/items/multipleOf"),
        ({"items": {"$ref": "#/nowhere"}}, "#/items/$ref"),
        ({"items": {"$ref": "https://example.com/schema.json"}}, "#/items/$ref"),
        ({"$defs": {"a": {"contains": {}}}, "items": {"$ref": "#/$defs/a"}}, "#/$defs/a/contains"),
        ({"items": {"x-guidance": {"lenient": True}}}, "'x-guidance' at #/items"),
        ({"type": "string", "nullable": True}, "'nullable' at #"),
        ({"type": "integer", "minimum": 7, "maximum": 3}, "#/minimum"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "#/minLength"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "#/"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#/properties/a"),
        ({"$ref": "#"}, "#"),
        ({"enum": []}, "#/enum"),
        (False, "#"),
        ({"enum": ["\ud800"]}, "#/enum"),
    ],
)
def test_what_is_refused_is_named_with_its_place(schema: Any, place: str) -> None:
    """The message holds a JSON pointer to the keyword."""
    with pytest.raises(GrammarError, match=r"JSON schema|regular expression") as refused:
        schema_accepts(schema, "")
    assert place in str(refused.value)


@pytest.mark.parametrize(
    "source",
    ["no json", "[1]", "1", '{"minimum": NaN}', '{"minimum": 1e999}', '{"a":' * 500 + "1" + "}" * 500, "[" * 100_000],
)
def test_what_is_no_schema_is_refused(source: str) -> None:
    """With a reason, and without a crash of the parser."""
    with pytest.raises(GrammarError):
        schema_of(source)


def test_a_recursion_with_a_way_out_is_no_endless_one() -> None:
    """A required property that may be null ends a document."""
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]}
    assert schema_accepts(schema, '{"a": {"a": null}}')


def test_a_tagged_call_stands_between_its_tags() -> None:
    """Each tag on a line of its own."""
    schema = json.dumps({"type": "object", "properties": {"name": {"const": "x"}}, "required": ["name"]})
    assert accepts("json_schema", schema, '<tool_call>\n{"name": "x"}\n</tool_call>', tagged=True)
    assert not accepts("json_schema", schema, '{"name": "x"}', tagged=True)


@pytest.mark.parametrize("schema", [{"type": "object"}, {"properties": {"a": {"type": "array"}, "b": {}}}, {}, True])
def test_json_is_written_on_one_line(schema: object) -> None:
    """With a space behind each comma and colon between values, and no other white space outside of texts."""
    document = '{"a": [1, 2], "b": {"c  d": " ,:\\n"}}'
    assert schema_accepts(schema, document)
    for place in ("{", ": [", ", 2", "2]", ', "b"', "}}"):
        for space in (" ", "\n", "\t"):
            assert not schema_accepts(schema, document.replace(place, f"{place[0]}{space}{place[1:]}"))
    assert not schema_accepts(schema, json.dumps(json.loads(document), separators=(",", ":")))
