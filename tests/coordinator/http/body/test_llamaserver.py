"""What llama-server's own routes are asked for, as text completions."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.http.body.llamaserver import CHARACTERS_PER_TOKEN, InfillRequest, Snippet, infill_fields
from moe2.coordinator.http.body.parse import Call, parse_completion
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.faces.face import Incoming
from moe2.coordinator.http.faces.llamaserver import completion_face, infill_face
from moe2.coordinator.keys.keys import ANYBODY

VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "def one():\n",
    "input_suffix": "\nprint(one())",
    "input_extra": [{"text": "two = 2", "time": [1, 2], "filename": "two.py"}],
    "prompt": "    ret",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "truncated"],
    "model": "",
}
"""What llama.vim sends while somebody types."""


def incoming(**fields: Any) -> Incoming:
    return Incoming(msgspec.json.encode(fields), {}, ANYBODY)


def infill(context_tokens: int | None = 4096, **fields: Any) -> Call:
    return infill_face(incoming(**fields), lambda model: context_tokens).call


def refused(face: Any, **fields: Any) -> str | None:
    with pytest.raises(ApiError) as raised:
        face(**fields)
    assert raised.value.status == 400
    return raised.value.param


def completion(**fields: Any) -> Call:
    return completion_face(incoming(**fields)).call


def test_an_editor_has_a_gap_filled() -> None:
    """The line so far follows what is before it, and other files stand before both; what is not done is named."""
    call = infill(**VIM)
    before = "--- two.py ---\ntwo = 2\n\ndef one():\n    ret"
    assert call.prompt == TextPrompt(text=before, suffix="\nprint(one())")
    assert (call.model, call.generation.max_tokens, call.generation.sampling.top_p) == ("moe2", 128, 0.9)
    assert set(call.ignored) == {
        "id_slot",
        "input_extra[].time",
        "n_indent",
        "samplers",
        "t_max_prompt_ms",
        "t_max_predict_ms",
    }


def test_a_gap_at_the_end_is_one_as_well() -> None:
    """The model is told that it fills a gap, where nothing follows, too."""
    assert infill(input_prefix="a").prompt == TextPrompt(text="a", suffix="\n")
    assert infill().prompt == TextPrompt(text="", suffix="\n")


def test_a_cache_is_not_filled_ahead() -> None:
    """Who asks for no tokens has the prompt counted; it is read when there is something to write."""
    call = infill(n_predict=0, stream=True)
    assert (call.generation.max_tokens, call.generation.echo, call.stream) == (0, False, False)
    assert completion(prompt="a", n_predict=0).generation.max_tokens == 0


def test_no_limit_is_llama_servers_default() -> None:
    """OpenAI's route has one of sixteen tokens."""
    assert completion(prompt="a").generation.max_tokens is None
    assert completion(prompt="a", n_predict=-1).generation.max_tokens is None
    assert completion(prompt=[1, 2], max_tokens=3).generation.max_tokens == 3


def test_a_completion_is_openais_otherwise() -> None:
    """Sampling, stop strings and forms are read in one place."""
    fields: dict[str, Any] = {"prompt": "a", "stop": ["b"], "temperature": 0.5, "seed": 3, "model": "m"}
    openais = parse_completion(msgspec.json.encode({**fields, "max_tokens": 4}))
    assert completion(**fields, n_predict=4) == openais
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    formed = completion(prompt="a", json_schema=schema)
    assert (formed.generation.json_schema is not None, formed.structured_by) == (True, "json_schema")


@pytest.mark.parametrize(
    ("face", "fields", "named"),
    [
        (completion, {"prompt": ["a", "b"]}, "prompt[0]"),
        (completion, {"prompt": "a", "n": 2}, "n"),
        (completion, {"prompt": "a", "n_predict": -2}, "n_predict"),
        (completion, {"prompt": "a", "lora": [{"id": 0, "scale": 0.5}]}, "lora"),
        (completion, {"prompt": "a", "json_schema": {}, "response_format": {"type": "text"}}, "json_schema"),
        (completion, {"prompt": "a", "input_prefix": "b"}, "input_prefix"),
        (infill, {"input_extra": ["a"]}, "input_extra[0]"),
        (infill, {"input_extra": [{"filename": "a"}]}, "input_extra[0].text"),
        (infill, {"input_prefix": 7}, "input_prefix"),
        (infill, {"input_suffix": "a\0"}, "input_suffix"),
        (infill, {"response_fields": "content"}, "response_fields"),
    ],
)
def test_what_is_not_done_is_refused_by_name(face: Any, fields: dict[str, Any], named: str) -> None:
    """As on every route."""
    assert refused(face, **fields) == named


SNIPPETS = [{"text": "x" * 100, "filename": f"{number}.py"} for number in range(10)]


def test_snippets_give_way_to_the_text_around_the_gap() -> None:
    """Of more than fits the latest snippets stay, and what is beside the gap."""
    call = infill(400, input_prefix="a" * 100, input_suffix="b" * 50, input_extra=SNIPPETS, n_predict=40)
    assert isinstance(call.prompt, TextPrompt)
    assert call.prompt.text == f"--- 9.py ---\n{'x' * 100}\n\n{'a' * 100}"
    assert call.ignored == ("input_extra",)
    call = infill(40, input_prefix="A" * 90 + "a" * 10, input_suffix="b" * 10 + "B" * 90, input_extra=SNIPPETS)
    assert call.prompt == TextPrompt(text="A" * 50 + "a" * 10, suffix="b" * 10 + "B" * 10)
    assert call.ignored == ("input_suffix", "input_prefix", "input_extra")


@given(
    before=st.text(max_size=60),
    after=st.text(max_size=60),
    lengths=st.lists(st.integers(0, 40), max_size=5),
    context_tokens=st.integers(1, 80),
    n_predict=st.integers(-1, 90),
)
def test_what_is_left_fits_and_is_beside_the_gap(
    before: str, after: str, lengths: list[int], context_tokens: int, n_predict: int
) -> None:
    """Whatever an editor sends, what is kept has room, and what is cut is far from the gap and named."""
    snippets = [Snippet(text="x" * length) for length in lengths]
    request = InfillRequest(input_prefix=before, input_suffix=after, input_extra=snippets, n_predict=n_predict)
    fields, cut = infill_fields(request, {}, context_tokens=context_tokens)
    room = CHARACTERS_PER_TOKEN * max(1, context_tokens - max(0, n_predict))
    kept_after = "" if fields["suffix"] == "\n" and not after.startswith("\n") else fields["suffix"]
    assert len(fields["prompt"]) + len(kept_after) <= room + 1
    assert after.startswith(kept_after)
    assert fields["prompt"].endswith(before) or before.endswith(fields["prompt"])
    around, beside = len(before) + len(after), sum(len("--- snippet ---\n\n\n") + length for length in lengths)
    assert bool(cut) == (around > room or (bool(lengths) and around + beside > room // CHARACTERS_PER_TOKEN))
