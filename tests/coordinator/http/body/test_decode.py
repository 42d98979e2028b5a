"""The errors of bodies, worded from the types of what is accepted."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
import msgspec.inspect
import pytest
from msgspec import Meta

from moe2.coordinator.http.body.decode import (
    MAX_DIGITS,
    MAX_FIELDS,
    MAX_FLOATS,
    MAX_TEXTS,
    convert,
    idle_parameters,
    json_object,
    without_unknown,
)
from moe2.coordinator.http.errors import ApiError


class Circle(msgspec.Struct, tag_field="kind", tag="circle", forbid_unknown_fields=True):
    radius: float


class Square(msgspec.Struct, tag_field="kind", tag="square", forbid_unknown_fields=True):
    side: Annotated[float, Meta(ge=0, le=9)]


class Drawing(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, extra={"hint": "Call it what you like."})]
    shapes: Annotated[list[Circle | Square], Meta(min_length=1, max_length=2)] | None = None
    colour: Literal["red", "blue"] | None = None
    paper: Literal["white"] | None = None
    size: Annotated[int, Meta(ge=1, le=3)] | str | None = None
    signed: bool | None = None
    date: Annotated[dict[str, int], Meta(extra={"must": "map names to days"})] | None = None
    frame: Annotated[Any, Meta(extra={"only": ("none",), "why": "Frames are sold elsewhere."})] = None


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "'name' must be a non-empty string. Call it what you like."),
    ({"name": None}, "name", "'name' is required: a non-empty string. Call it what you like."),
    ({"shapes": []}, "shapes", "'shapes' must be a non-empty list of at most 2."),
    ({"shapes": [7]}, "shapes[0]", "'shapes[0]' must be an object."),
    ({"shapes": [{"kind": "oval"}]}, "shapes[0].kind", "'shapes[0].kind' must be one of circle, square."),
    ({"shapes": [{}]}, "shapes[0].kind", "'shapes[0].kind' is required: one of circle, square."),
    ({"shapes": [{"kind": "circle"}]}, "shapes[0].radius", "'shapes[0].radius' is required: a number."),
    (
        {"shapes": [{"kind": "circle", "radius": 1}, {"kind": "square", "side": 10}]},
        "shapes[1].side",
        "'shapes[1].side' must be a number from 0 to 9.",
    ),
    (
        {"shapes": [{"kind": "circle", "side": 1}]},
        "shapes[0].side",
        "Unsupported parameter: 'shapes[0].side'. It needs 'kind': 'square'.",
    ),
    ({"colour": "green"}, "colour", "'colour' must be one of blue, red."),
    ({"paper": "grey"}, "paper", "Unsupported parameter: 'paper'. Only 'white' is accepted."),
    ({"size": 4}, "size", "'size' must be an integer from 1 to 3 or a string."),
    ({"signed": "yes"}, "signed", "'signed' must be a boolean."),
    ({"date": {"a": "b"}}, "date", "'date' must map names to days."),
    ({"frame": "gold"}, "frame", "Unsupported parameter: 'frame'. Only 'none' is accepted. Frames are sold elsewhere."),
    (
        {"price - at `$.name`": 1},
        "price - at `$.name`",
        "Unsupported parameter: 'price - at `$.name`'. Known: name, shapes, colour, paper, size, signed, date, frame.",
    ),
    ({"name": "a\0b"}, "name", "'name' contains a NUL character."),
    ({"date": {"a\0": ["\0"]}}, "date.a\0[0]", "'date.a\0[0]' contains a NUL character."),
]


@pytest.mark.parametrize(("fields", "param", "message"), CASES, ids=[case[1] for case in CASES])
def test_an_error_names_the_place_and_what_is_accepted(fields: dict[str, Any], param: str, message: str) -> None:
    """An error names the place and what is accepted, from the type alone or with the field's own words."""
    with pytest.raises(ApiError) as caught:
        convert(json_object(json.dumps({"name": "x", **fields}).encode()), Drawing)
    assert (caught.value.param, caught.value.message) == (param, message)


def test_a_kind_of_body_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding out what there is to know of a type takes as long as a hundred bodies; not each bad one costs that."""
    looked_at: list[Any] = []
    find_out = msgspec.inspect.type_info

    def look(kind: Any) -> msgspec.inspect.Type:
        looked_at.append(kind)
        return find_out(kind)

    monkeypatch.setattr(msgspec.inspect, "type_info", look)

    class Frame(msgspec.Struct, forbid_unknown_fields=True):
        width: int

    for fields in ({"width": "a"}, {"height": 1}, {}):
        with pytest.raises(ApiError):
            convert(fields, Frame)
        assert without_unknown(fields, Frame)
        assert idle_parameters(fields, Frame) == ()
    assert looked_at == [Frame]


def test_what_fits_is_read() -> None:
    """Fields that fit are read, and a null counts as not set."""
    body = b'{"name": "x", "size": null, "frame": "none", "shapes": [{"kind": "square", "side": 1}]}'
    read = convert(json_object(body), Drawing)
    assert (read.size, read.shapes) == (None, [Square(side=1.0)])


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    """A text that speaks of NUL is accepted, as it does not contain one."""
    assert convert(json_object(b'{"name": "\\\\u0000"}'), Drawing).name == "\\u0000"


@pytest.mark.parametrize("part", [{}, [], {"a": 1}])
def test_a_body_has_so_many_objects_lists_and_fields(part: Any) -> None:
    """A hundred thousand tiny messages would hold everybody up for seconds."""
    body = msgspec.json.encode({"messages": [part] * MAX_FIELDS})
    with pytest.raises(ApiError, match="32,768 objects, lists and fields") as refused:
        json_object(body)
    assert refused.value.status == 400


def test_a_body_has_so_many_texts() -> None:
    """Those of its fields' names are counted, too."""
    assert json_object(msgspec.json.encode({"input": [""] * (MAX_TEXTS - 1)}))
    with pytest.raises(ApiError, match="65,536 texts"):
        json_object(msgspec.json.encode({"input": [""] * MAX_TEXTS}))


@pytest.mark.parametrize("text", ["{[:" * MAX_FIELDS, '"\\' * MAX_TEXTS, ":{\n" * MAX_FIELDS])
def test_what_stands_within_a_text_is_not_counted(text: str) -> None:
    """Code has as many brackets, quotes and colons as it likes."""
    assert json_object(msgspec.json.encode({"prompt": text})) == {"prompt": text}


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 2_000_000, b'{"a":"' + b"\\" * 4_000_000, b'"' * 4_000_000])
def test_texts_without_an_end_are_looked_through_once(body: bytes) -> None:
    """Looking again from each quote would take hours."""
    with pytest.raises(ApiError):
        json_object(body)


def test_long_lists_of_numbers_are_one_part() -> None:
    """A prompt may have a million token ids."""
    assert json_object(msgspec.json.encode({"prompt": [1] * 1_000_000}))


@pytest.mark.parametrize("literal", ["1e300", "5e-324", "1.5", "-1.7976931348623157e308"])
def test_a_body_has_so_many_numbers_with_a_point_or_an_exponent(literal: str) -> None:
    """Each of some kinds takes long to read; as many as are allowed are read as what they are."""
    most = ",".join([literal] * MAX_FLOATS)
    assert set(json_object(f'{{"a": [{most}]}}'.encode())["a"]) == {float(literal)}
    with pytest.raises(ApiError, match="numbers with a point or an exponent"):
        json_object(f'{{"a": [{most},{literal}]}}'.encode())


def test_a_number_beyond_what_a_float_holds_is_refused() -> None:
    """It does not become infinite."""
    with pytest.raises(ApiError, match="'-1e400' is too large"):
        json_object(b'{"a": -1e400}')


@pytest.mark.parametrize("before", ["", '"b": "0", ', '"b": "\\"' + 70 * "1" + '", '])
def test_a_number_has_so_many_digits(before: str) -> None:
    """Converting one of thousands of digits takes long; in texts there may be any number of digits."""
    longest = MAX_DIGITS * "9"
    assert json_object(f'{{{before}"a": {longest}}}'.encode())["a"] == int(longest)
    assert json_object(f'{{{before}"a": "9{longest}"}}'.encode())["a"] == "9" + longest
    for literal in ("9" + longest, "-9" + longest, "0.9" + longest, "1e9" + longest):
        with pytest.raises(ApiError, match="64 digits in a row"):
            json_object(f'{{{before}"a": {literal}}}'.encode())
        with pytest.raises(ApiError, match="64 digits in a row"):
            json_object(f'{{{before}"a": {literal}, "c": "d"}}'.encode())
