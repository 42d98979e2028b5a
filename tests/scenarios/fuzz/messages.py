"""Random messages of any type, made from the types themselves: what the decoder would let through."""

from __future__ import annotations

from typing import Any

import msgspec
import msgspec.inspect as types
from hypothesis import strategies as st

from tests.common.samples import SAMPLES

_WORDS = st.sampled_from(["", "m", "req-0.0", "req-1.0", "agent-1", "stop", "cancelled", "ready"]) | st.text(max_size=8)
_INTEGERS = st.sampled_from([0, 1, -1, 2**31, -(2**63), 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
_FLOATS = st.sampled_from([0.0, -1.0, 1e308, float("inf"), float("nan")]) | st.floats()


def any_message(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Values of a message type that encode and decode."""
    return _of(types.type_info(kind)).map(lambda built: msgspec.convert(built, kind))


def _of(info: Any) -> st.SearchStrategy[Any]:  # noqa: C901 - one case per kind of type
    """The value as msgpack has it."""
    match info:
        case types.StructType():
            return _struct(info)
        case types.BoolType():
            return st.booleans()
        case types.Metadata(type=inner):
            return _of(inner)
        case types.IntType(ge=least, le=most) if least is not None:
            return st.sampled_from([least, most]) | st.integers(least, most)
        case types.IntType():
            return _INTEGERS
        case types.FloatType(gt=above, ge=least, le=most) if most is not None:
            return st.floats(least if above is None else above, most, exclude_min=above is not None)
        case types.FloatType():
            return _FLOATS
        case types.StrType():
            return _WORDS
        case types.BytesType():
            return st.binary(max_size=4)
        case types.NoneType():
            return st.none()
        case types.EnumType(cls=cls):
            return st.sampled_from([member.value for member in cls])
        case types.LiteralType(values=values):
            return st.sampled_from(values)
        case types.UnionType(types=members):
            return st.one_of(*map(_of, members))
        case types.VarTupleType(item_type=item):
            return st.lists(_of(item), max_size=3)
        case types.TupleType(item_types=items):
            return st.tuples(*map(_of, items)).map(list)
        case types.DictType(key_type=key, value_type=value):
            return st.dictionaries(_of(key), _of(value), max_size=2)
    raise AssertionError(f"no strategy for {info}")


def _struct(info: types.StructType) -> st.SearchStrategy[Any]:
    fields = {field.encode_name: _of(field.type) for field in info.fields}
    if info.array_like:
        return st.tuples(*fields.values()).map(list)
    required = {field.encode_name for field in info.fields if field.required}
    tag = {} if info.tag_field is None else {info.tag_field: st.just(info.tag)}
    return st.fixed_dictionaries(
        {**tag, **{name: fields[name] for name in required}},
        optional={name: fields[name] for name in fields.keys() - required},
    )


def golden(*, mutated: bool = True) -> st.SearchStrategy[bytes]:
    """Well-formed frames, some with a few bytes changed, cut off or put in."""
    from moe2.common.link.wire import wire_codec

    frames = st.sampled_from([wire_codec().encode(message) for message in SAMPLES.values()])
    if not mutated:
        return frames
    changes = st.lists(
        st.tuples(st.sampled_from(["set", "cut", "insert"]), st.floats(0, 1, exclude_max=True), st.binary(min_size=1)),
        max_size=3,
    )
    return st.builds(_mutate, frames, changes)


def _mutate(frame: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for how, where, data in changes:
        place = int(where * len(frame))
        match how:
            case "set":
                frame = frame[:place] + data[:1] + frame[place + 1 :]
            case "cut":
                frame = frame[:place]
            case _:
                frame = frame[:place] + data + frame[place:]
    return frame
