"""The parser of request bodies: every parameter is honoured, or refused by its name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.generation import MAX_TOP_K, Generation, Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt
from moe2.common.link.wire import wire_codec
from moe2.coordinator.choosing.request import Mode, Wish
from moe2.coordinator.http.body.parse import Call, parse_chat, parse_completion
from moe2.coordinator.http.errors import ApiError
from tests.coordinator.http.body.bodies import USER, chat, completion, refused

# --- Honoured ---------------------------------------------------------------------------------------------------------


def test_the_smallest_chat_leaves_all_to_the_model() -> None:
    """The smallest chat has no sampling of its own, no limit, no stop, no stream."""
    assert chat() == Call(
        model="m",
        prompt=ChatPrompt(messages=(ChatMessage(role="user", content="Hi"),)),
        generation=Generation(sampling=Sampling(), max_tokens=None, stop=(), logprobs=None),
        structured_by=None,
        stream=False,
        include_usage=False,
        wish=Wish(),
        modes=frozenset({Mode.ROUTE, Mode.RANK, Mode.CONSENSUS, Mode.MIX}),
        ballot=None,
    )


def test_the_smallest_completion_has_openais_defaults() -> None:
    """The smallest text completion has OpenAI's documented limit of sixteen tokens."""
    call = completion()
    assert (call.prompt, call.is_chat) == (TextPrompt(text="Once"), False)
    assert (call.generation.max_tokens, call.generation.logprobs) == (16, None)


@pytest.mark.parametrize("model", [None, "", " "])
def test_who_names_no_model_has_one_chosen(model: str | None) -> None:
    """llama-server's clients leave it out, or send an empty one."""
    assert chat(model=model).model == "moe2"


@pytest.mark.parametrize("parse", [chat, completion])
def test_a_limit_has_llama_servers_name_too(parse: Any) -> None:
    """It is the same limit, and two that differ are refused."""
    assert parse(n_predict=5) == parse(max_tokens=5)
    assert parse(n_predict=-1).generation.max_tokens is None
    assert parse(n_predict=5, max_tokens=5) == parse(max_tokens=5)
    assert refused(parse, n_predict=5, max_tokens=6).param == "n_predict"
    assert refused(parse, n_predict=0).param == "n_predict"


HONOURED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": 5}, {"max_tokens": 5}),
    ({"stop": "END"}, {"stop": ("END",)}),
    ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
    ({"stop": []}, {"stop": ()}),
    ({"stream": True}, {"stream": True}),
    ({"stream": True, "stream_options": {"include_usage": True}}, {"include_usage": True}),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, {"continuous_usage": True}),
    ({"stream": True, "stream_options": {}}, {"include_usage": False}),
    ({"n": 3}, {"n": 3}),
    ({"max_tokens": -1}, {"max_tokens": None}),
    ({"max_tokens": 2**40}, {"max_tokens": 2**31 - 1}),
    ({"cache_prompt": False}, {"cache_prompt": False}),
]
SAMPLED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"temperature": 2}, {"temperature": 2.0}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"top_k": 40}, {"top_k": 40}),
    ({"top_k": 0}, {"top_k": MAX_TOP_K}),
    ({"top_k": -1}, {"top_k": MAX_TOP_K}),
    ({"min_p": 0.05}, {"min_p": 0.05}),
    ({"seed": 7}, {"seed": 7}),
    ({"frequency_penalty": -2}, {"frequency_penalty": -2.0}),
    ({"presence_penalty": 2}, {"presence_penalty": 2.0}),
    ({"repeat_penalty": 1.1}, {"repeat_penalty": 1.1}),
    ({"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
    ({"repetition_penalty": 1.1, "repeat_penalty": 1.1}, {"repeat_penalty": 1.1}),
    ({"logit_bias": {"50256": -100, "7": 1.5}}, {"logit_bias": {50256: -100.0, 7: 1.5}}),
]


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(("fields", "expected"), HONOURED)
def test_parameters_of_both_routes_are_honoured(parse: Any, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each parameter of both routes reaches the parsed call."""
    call = parse(**fields)
    found = {name: getattr(call if hasattr(call, name) else call.generation, name) for name in expected}
    assert found == expected


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(("fields", "expected"), SAMPLED)
def test_sampling_parameters_are_honoured(parse: Any, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each sampling parameter reaches the sampler, and the others keep their defaults."""
    assert parse(**fields).generation.sampling == Sampling(**expected)


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 5}, 5),
        ({"max_completion_tokens": None, "max_tokens": 6}, 6),
    ],
)
def test_a_chats_limit_has_two_names(fields: dict[str, Any], max_tokens: int) -> None:
    """A chat's limit may have its older or its newer name."""
    assert chat(**fields).generation.max_tokens == max_tokens


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 20}, 20)],
)
def test_a_chats_logprobs_are_a_flag_and_a_number(fields: dict[str, Any], logprobs: int | None) -> None:
    """A chat's number of alternatives is 0 if it is not given."""
    assert chat(**fields).generation.logprobs == logprobs


@pytest.mark.parametrize("logprobs", [0, 5])
def test_a_completions_logprobs_are_a_number(logprobs: int) -> None:
    """A text completion's logprobs of 0 ask for the chosen tokens' only."""
    assert completion(logprobs=logprobs).generation.logprobs == logprobs


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_every_seed_is_a_seed_for_llama_cpp(seed: int) -> None:
    """Every seed becomes one of 32 bits, and never the value that stands for a random one."""
    drawn = chat(seed=seed).generation.sampling.seed
    assert drawn is not None
    assert 0 <= drawn < 2**32 - 1


def test_an_explicit_null_sets_no_limit_for_a_text() -> None:
    """A text completion has OpenAI's limit of sixteen tokens, unless its limit is null."""
    assert completion(max_tokens=None).generation.max_tokens is None


def test_one_prompt_in_a_list_is_one_prompt() -> None:
    """A list of one prompt is one prompt, as some clients always send a list."""
    assert completion(prompt=["Once"]).prompt == TextPrompt(text="Once")


@pytest.mark.parametrize(
    ("sent", "role"), [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")]
)
def test_roles_are_those_that_templates_know(sent: str, role: str) -> None:
    """A developer's message becomes a system's, which templates know."""
    assert chat(messages=[{"role": sent, "content": "Hi"}]).prompt == ChatPrompt(
        messages=(ChatMessage(role=role, content="Hi"),)
    )


def test_text_parts_are_joined() -> None:
    """Text parts are joined as one content, a line each, and are kept for templates that want them."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    prompt = chat(messages=[{"role": "user", "content": parts, "name": "n"}]).prompt
    assert prompt == ChatPrompt(messages=(ChatMessage(role="user", content="a\nb", parts=("a", "b"), name="n"),))


def test_an_answer_can_be_sent_back_as_the_sdk_returned_it() -> None:
    """An answer can be sent back as the SDK returned it, with all its empty fields."""
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "tool_calls": [],
        "annotations": [],
        "audio": None,
    }
    prompt = chat(messages=[USER, answer, USER]).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1] == ChatMessage(role="assistant", content="Hello")


def test_an_answer_that_the_sdk_has_parsed_can_be_sent_back() -> None:
    """OpenAI's `parse` keeps what it has made of text and arguments beside them, and sends it back, too."""
    function = {"name": "f", "arguments": '{"a":1}', "parsed_arguments": {"a": 1}}
    calls = [{"id": "c", "type": "function", "function": function}]
    answer = {"role": "assistant", "content": "{}", "parsed": {"a": 1}, "tool_calls": calls}
    call = chat(messages=[USER, answer, {"role": "tool", "tool_call_id": "c", "content": "!"}])
    assert set(call.ignored) == {"messages[].tool_calls[].function.parsed_arguments", "messages[].parsed"}


# --- Null -------------------------------------------------------------------------------------------------------------

NULLABLE = [
    *("stream", "stream_options", "stop", "user", "logprobs", "temperature", "top_p", "top_k", "min_p"),
    *("seed", "frequency_penalty", "presence_penalty", "logit_bias", "n", "tools", "metadata", "anything"),
]


@pytest.mark.parametrize("name", [*NULLABLE, "max_tokens", "max_completion_tokens", "top_logprobs", "response_format"])
def test_null_means_not_set_in_chats(name: str) -> None:
    """In chats null means "not set", even for unsupported parameters."""
    assert chat(**{name: None}) == chat()


@pytest.mark.parametrize("name", [*NULLABLE, "suffix", "echo", "best_of"])
def test_null_means_not_set_in_completions(name: str) -> None:
    """In text completions null means "not set", even for unsupported parameters."""
    assert completion(**{name: None}) == completion()


# --- Neutral ----------------------------------------------------------------------------------------------------------

NEUTRAL = {
    "best_of": (1, 2),
    "echo": (False, True),
    "modalities": (["text"], ["audio"]),
    "add_generation_prompt": (True, False),
    "ignore_eos": (False, True),
    "include_stop_str_in_output": (False, True),
    "length_penalty": (1.0, 2.0),
    "min_tokens": (0, 5),
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([], [7]),
    "use_beam_search": (False, True),
    "dry_multiplier": (0, 0.8),
    "dynatemp_range": (0, 0.5),
    "mirostat": (0, 2),
    "n_probs": (0, 3),
    "typical_p": (1, 0.5),
    "xtc_probability": (0, 0.1),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_value_that_changes_nothing_is_accepted(name: str) -> None:
    """A value that changes nothing is accepted, as SDKs send some defaults explicitly."""
    assert chat(**{name: NEUTRAL[name][0]}) == chat()


IDLE: dict[str, tuple[Any, Any]] = {
    "metadata": ({}, {"a": "b"}),
    "id_slot": (-1, 0),
    "prompt_cache_key": (None, "k"),
    "prompt_cache_options": ({}, {"mode": "explicit"}),
    "safety_identifier": (None, "s"),
    "samplers": (None, ["top_k", "infill"]),
    "service_tier": ("auto", "flex"),
    "store": (False, True),
    "timings_per_token": (False, True),
    "user": (None, "u"),
    "verbosity": ("medium", "low"),
}


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize("name", IDLE)
def test_what_changes_nothing_here_is_accepted_and_said(parse: Any, name: str) -> None:
    """Parameters that clients send by default are accepted; a value that asks for something is named as ignored."""
    silent, telling = IDLE[name]
    assert parse(**{name: silent}) == parse()
    assert parse(**{name: telling}) == msgspec.structs.replace(parse(), ignored=(name,))


def test_what_changes_nothing_inside_of_others_is_said_once() -> None:
    """Hints inside of parts and options are named with their place, whichever message has them."""
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    options = {"include_usage": True, "include_obfuscation": True, "continuous_usage_stats": True}
    call = chat(messages=[{"role": "user", "content": [part, part]}] * 3, stream=True, stream_options=options)
    assert set(call.ignored) == {"messages[].content[].cache_control", "stream_options.include_obfuscation"}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_value_that_would_change_something_is_refused_by_name(name: str) -> None:
    """A value that would change something is refused with the accepted one."""
    error = refused(chat, **{name: NEUTRAL[name][1]})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert repr(NEUTRAL[name][0]) in error.message


@pytest.mark.parametrize(("name", "value"), [("best_of", 1.0), ("best_of", True), ("suffix", 0)])
def test_a_value_of_another_type_is_not_neutral(name: str, value: Any) -> None:
    """A value of another type is refused, even if Python takes it for equal."""
    assert refused(completion, **{name: value}).param == name


def test_a_text_behind_a_gap_goes_with_each_prompt() -> None:
    """`suffix` is what follows the gap, whatever the prompt before it is; only one expert alone can fill it."""
    assert completion(suffix="") == completion()
    call = completion(prompt=["a", "b"], suffix="end")
    assert [call.prompt, *call.more_prompts] == [TextPrompt(text=text, suffix="end") for text in ("a", "b")]
    assert call.modes == {Mode.ROUTE}
    assert completion(prompt=[1, 2], suffix="end").prompt == TextPrompt(text="", tokens=(1, 2), suffix="end")


def test_a_text_behind_a_gap_counts_as_prompt() -> None:
    """What is reserved, and what certainly fits no context, reckons with both texts."""
    call, longer = completion(prompt="a" * 1000), completion(prompt="a" * 1000, suffix="b" * 1000)
    assert longer.prompt_tokens() >= 2 * call.prompt_tokens() - 10
    assert longer.least_tokens() == 2 * call.least_tokens()
    assert completion(prompt=[1, 2], suffix="b" * 1000).prompt_tokens() > 200


def test_a_text_behind_a_gap_is_not_echoed_and_no_chats() -> None:
    """Where the prompt has two ends there is no order to repeat it in; a conversation has no gap."""
    assert refused(completion, suffix="end", echo=True).param == "echo"
    assert refused(chat, suffix="end").param == "suffix"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*NULLABLE, *NEUTRAL, "model", "messages", "prompt", "max_completion_tokens", "top_logprobs"])


@pytest.mark.slow
@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
@given(fields=st.dictionaries(NAMES, JSON, max_size=3))
def test_any_json_is_parsed_or_refused_and_what_is_parsed_can_be_sent(parse: Any, fields: dict[str, Any]) -> None:
    """Any JSON is parsed or refused, and what is parsed can be sent to an agent."""
    body = {"model": "m", **({"messages": [USER]} if parse is parse_chat else {"prompt": "Once"}), **fields}
    try:
        call = parse(msgspec.json.encode(body))
    except ApiError as error:
        assert error.message  # noqa: PT017 - either outcome is right; what is claimed is what each looks like
        return
    submit = Submit(
        job_id="j",
        request_id="r",
        model=call.model,
        prompt=call.prompt,
        **msgspec.structs.asdict(call.generation),
    )
    codec = wire_codec()
    assert codec.decode(codec.encode(submit)) == submit


@given(st.binary(max_size=60))
def test_random_bytes_are_refused(body: bytes) -> None:
    """Random bytes are refused with an error for the client."""
    with pytest.raises(ApiError):
        parse_chat(body)
