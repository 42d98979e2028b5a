"""The parameters of an answer: their bounds hold at both ends of the wire."""

from __future__ import annotations

import re
from typing import Any

import msgpack
import msgspec
import pytest

from moe2.common.generation import Generation, Sampling
from moe2.common.link.messages import FollowJob, Submit
from moe2.common.link.prompts import TextPrompt
from moe2.common.link.wire import UnreadableMessage, wire_codec

SUBMIT = Submit(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="Once"))
FOLLOW = FollowJob(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="Once"))


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (SUBMIT, {"sampling": {"temperature": float("nan")}}),
        (SUBMIT, {"sampling": {"temperature": -1.0}}),
        (SUBMIT, {"sampling": {"top_p": 7.0}}),
        (SUBMIT, {"sampling": {"top_k": -2}}),
        (SUBMIT, {"sampling": {"min_p": 2.0}}),
        (SUBMIT, {"sampling": {"frequency_penalty": float("inf")}}),
        (SUBMIT, {"sampling": {"presence_penalty": -9.0}}),
        (SUBMIT, {"sampling": {"repeat_penalty": 0.0}}),
        (SUBMIT, {"sampling": {"logit_bias": {1: 1e9}}}),
        (SUBMIT, {"max_tokens": -3}),
        (SUBMIT, {"logprobs": 21}),
        (FOLLOW, {"most": 0}),
        (FOLLOW, {"top_p": 0.0}),
        (FOLLOW, {"top_p": 1.5}),
        (FOLLOW, {"max_tokens": 0}),
    ],
)
def test_no_peer_reads_a_parameter_that_is_out_of_bounds(message: Submit | FollowJob, fields: dict[str, Any]) -> None:
    """The complaint names the parameter."""
    content = {**msgspec.to_builtins(message), **fields}
    name = next(iter(fields.get("sampling", fields)))
    with pytest.raises(UnreadableMessage, match=rf"\$.*\.{re.escape(name)}"):
        wire_codec().decode(msgpack.packb(content))


def test_a_jobs_parameters_are_the_requests() -> None:
    """A submitted job is the request's generation with the job's own fields beside it: none is copied by name."""
    generation = Generation(sampling=Sampling(repeat_penalty=1.5), max_tokens=3, stop=("x",), grammar='root ::= "a"')
    submit = Submit(**{**msgspec.structs.asdict(SUBMIT), **msgspec.structs.asdict(generation)})
    read = wire_codec().decode(wire_codec().encode(submit))
    assert {name: getattr(read, name) for name in Generation.__struct_fields__} == msgspec.structs.asdict(generation)
