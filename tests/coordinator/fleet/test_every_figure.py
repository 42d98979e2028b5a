"""Every figure of every message of an agent, found in the types: whatever it is, what is believed of it can be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import msgspec.inspect as types
import pytest
from msgspec.structs import replace

from moe2.common.errors import ProtocolError
from moe2.common.link.messages import CommandAnswer, FromAgent, Job, JobScored, NextTokens, Report
from moe2.common.link.supply import TicketWanted
from moe2.common.link.wire import wire_codec
from moe2.coordinator.fleet.bounds import MAX_FIGURE
from moe2.coordinator.fleet.checks import AgentChecks
from tests.coordinator.fleet.test_checks import FOLLOW, SCORE, WRITE

KINDS: tuple[type[Any], ...] = (Report, *get_args(FromAgent), CommandAnswer, TicketWanted)
ODD = (
    *(math.nan, math.inf, -math.inf, 1e308, -1e308, 1e16, -1.5, -1e-9, 5e-324, -0.0),
    *(0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1),
)
SIGNED = {"logprob", "p50", "p95", "occupancy", "frequency_penalty", "presence_penalty", "marginal_joules", "idle_w"}
"""Figures that may be below 0, differences among them. All others are counts, seconds, watts, joules or shares."""
SIZES = {"size_bytes", "done_bytes", "free_bytes", "max_bytes", "memory_free_bytes"}
PLACES = {"seq", "seed"}
"""Integers with which nobody computes."""
MAX_BYTES = 1 << 60
JOBS: dict[type[Any], Job] = {JobScored: SCORE, NextTokens: FOLLOW}
"""The job that a word is about; others write."""
CODEC = wire_codec()


def whole(info: Any) -> Any:  # noqa: C901 - one case per kind of type
    """A value of a type with every field set, as msgpack has it."""
    match info:
        case types.StructType(array_like=True):
            return [whole(field.type) for field in info.fields]
        case types.StructType():
            tag = {} if info.tag_field is None else {info.tag_field: info.tag}
            return {**tag, **{field.encode_name: whole(field.type) for field in info.fields}}
        case types.Metadata(type=inner):
            return whole(inner)
        case types.BoolType():
            return True
        case types.IntType():
            return 1
        case types.FloatType():
            return 0.5
        case types.StrType():
            return "j"
        case types.BytesType():
            return bytes(4)
        case types.EnumType(cls=cls):
            return next(iter(cls)).value
        case types.LiteralType(values=values):
            return values[0]
        case types.UnionType(types=members):
            return whole(next(member for member in members if not isinstance(member, types.NoneType)))
        case types.VarTupleType(item_type=item):
            return [whole(item)]
        case types.TupleType(item_types=items):
            return [whole(item) for item in items]
        case types.DictType():
            return {}
    raise AssertionError(f"no value for {info}")


def figures(value: Any, *place: Any) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Yields the place and value of each figure."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in parts:
        yield from figures(part, *place, name)


def with_one(value: Any, place: tuple[Any, ...], figure: float) -> Any:
    """The value with another figure at a place."""
    if not place:
        return figure
    changed = value.copy()
    changed[place[0]] = with_one(value[place[0]], place[1:], figure)
    return changed


def can_be(place: tuple[Any, ...], figure: float) -> bool:
    names = {name for name in place if isinstance(name, str)}
    if names & PLACES:
        return isinstance(figure, int)
    most = MAX_BYTES if names & SIZES else MAX_FIGURE
    return math.isfinite(figure) and figure <= most and (figure >= 0 or bool(names & SIGNED))


def named(message: Any) -> Any:
    """A believed message as maps, its array-like parts by their fields' names."""
    if isinstance(message, msgspec.Struct):
        return {name: named(part) for name, part in msgspec.structs.asdict(message).items()}
    return [named(part) for part in message] if isinstance(message, tuple) else message


CASES = [
    pytest.param(kind, place, id=f"{kind.__name__}-{'.'.join(map(str, place))}")
    for kind in KINDS
    for place, _ in figures(whole(types.type_info(kind)))
]


@pytest.mark.parametrize(("kind", "place"), CASES)
def test_no_figure_that_cannot_be_is_believed(kind: type[Any], place: tuple[Any, ...]) -> None:
    """It is not read at all, or unknown, or bounded, or costs its part of the message."""
    job = replace(JOBS.get(kind, WRITE), job_id="j")
    told = whole(types.type_info(kind))
    for odd in ODD:
        try:
            message = CODEC.decode(msgspec.msgpack.encode(with_one(told, place, odd)))
        except ProtocolError:
            continue
        door = AgentChecks()
        door.sent(job)
        assert isinstance(message, KINDS)
        for believed in door.check(message).messages:
            assert [found for found in figures(named(believed)) if not can_be(*found)] == [], odd


def test_every_kind_of_figure_is_tried() -> None:
    """The cases come from the types: fields as deep as a profile's coefficients are among them."""
    ids = {case.id for case in CASES}
    assert {"Report-experts.0.latency.prefill.3", "JobDone-usage.energy.joules", "Tokens-jobs.0.1.0.1"} <= ids
    assert len(ids) == len(CASES) > 150
