"""Several prompts and answers, token ids, scoring by echo, variables of the template, and bounds of thinking."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moe2.common.link.prompts import ChatPrompt, TextPrompt
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.http.body.parse import Call
from moe2.coordinator.http.body.prompt import idle_settings
from moe2.coordinator.http.errors import ApiError
from tests.coordinator.http.body.bodies import chat, completion


def variables(call: Call) -> Any:
    assert isinstance(call.prompt, ChatPrompt)
    return json.loads(call.prompt.template_kwargs)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ([5, 0, 7], [TextPrompt(text="", tokens=(5, 0, 7))]),
        ([[5], [6, 7]], [TextPrompt(text="", tokens=(5,)), TextPrompt(text="", tokens=(6, 7))]),
        (["a", ""], [TextPrompt(text="a"), TextPrompt(text="")]),
    ],
)
def test_a_prompt_is_a_text_or_token_ids_and_may_be_several(prompt: Any, prompts: list[TextPrompt]) -> None:
    """OpenAI's four forms of `prompt` are read, in their order."""
    assert [choice.prompt for choice in completion(prompt=prompt).choices()] == prompts


def test_all_answers_to_one_prompt_come_before_those_to_the_next() -> None:
    """Answers have OpenAI's order, share the joules, and differ in their seeds."""
    choices = completion(prompt=["a", "b"], n=2, seed=2**32 - 2, moe2={"energy_budget_j": 8}).choices()
    assert [choice.prompt.text for choice in choices if isinstance(choice.prompt, TextPrompt)] == ["a", "a", "b", "b"]
    assert [choice.generation.sampling.seed for choice in choices] == [2**32 - 2, 0, 2**32 - 2, 0]
    assert {choice.wish.energy_budget_j for choice in choices} == {2.0}
    assert {choice.n_choices for choice in choices} == {1}


def test_one_answer_is_the_call_itself() -> None:
    """The usual request is not copied."""
    call = chat()
    assert call.choices() == (call,)


@pytest.mark.parametrize(
    ("fields", "echo", "repeats_prompt", "max_tokens"),
    [
        ({}, False, False, 16),
        ({"echo": True}, False, True, 16),
        ({"echo": True, "logprobs": 1}, True, False, 16),
        ({"echo": True, "prompt": [1]}, True, False, 16),
        ({"echo": True, "logprobs": 1, "max_tokens": 0}, True, False, 0),
        ({"echo": True, "max_tokens": 0}, True, False, 0),
    ],
)
def test_a_prompt_is_repeated_by_whoever_knows_it(
    fields: dict[str, Any], echo: bool, repeats_prompt: bool, max_tokens: int
) -> None:
    """Its text is known here; its tokens and what they are worth only to the expert, which alone can score."""
    call = completion(**fields)
    assert (call.generation.echo, call.repeats_prompt, call.generation.max_tokens) == (echo, repeats_prompt, max_tokens)
    assert (call.modes == {Mode.ROUTE}) == bool(fields)


@pytest.mark.parametrize(
    ("effort", "expected", "budget_tokens"),
    [
        ("none", {"reasoning_effort": "low", "enable_thinking": False}, 0),
        ("low", {"reasoning_effort": "low"}, 1024),
        ("high", {"reasoning_effort": "high"}, None),
        ("xhigh", {"reasoning_effort": "high"}, None),
    ],
)
def test_an_effort_bounds_the_thinking(effort: str, expected: dict[str, Any], budget_tokens: int | None) -> None:
    """An effort is told to templates that know efforts, and limits the thinking of all others."""
    call = chat(reasoning_effort=effort)
    assert variables(call) == expected
    assert call.generation.thinking_budget_tokens == budget_tokens


def test_what_a_client_says_itself_counts() -> None:
    """Variables and budgets of the client's own come before what an effort stands for."""
    kwargs = {"enable_thinking": True, "reasoning_effort": "max"}
    call = chat(reasoning_effort="none", chat_template_kwargs=kwargs, moe2={"thinking_budget_tokens": 7})
    assert variables(call) == kwargs
    assert call.generation.thinking_budget_tokens == 7


def test_without_wishes_nothing_is_said_of_thinking() -> None:
    """The usual request is one that every agent understands."""
    assert (variables(chat()), chat().generation.thinking_budget_tokens) == ({}, None)


@pytest.mark.parametrize(
    ("kwargs", "param"),
    [
        ({"messages": []}, "chat_template_kwargs.messages"),
        ({"bos_token": "x"}, "chat_template_kwargs.bos_token"),
        ({"a-b": 1}, "chat_template_kwargs"),
        ({"": 1}, "chat_template_kwargs"),
        ({"a\n": 1}, "chat_template_kwargs"),
        ({"a": "x" * 20_000}, "chat_template_kwargs"),
        ([], "chat_template_kwargs"),
        ("enable_thinking", "chat_template_kwargs"),
    ],
)
def test_variables_that_are_not_the_clients_are_refused(kwargs: Any, param: str) -> None:
    """Nobody replaces the conversation, a function or a control token through the template's variables."""
    with pytest.raises(ApiError) as raised:
        chat(chat_template_kwargs=kwargs)
    assert (raised.value.status, raised.value.param) == (400, param)


def report(variables: tuple[str, ...] | None, *, thinks: bool | None = False) -> ExpertReport:
    return ExpertReport(
        model="m",
        state=ExpertState.READY,
        context_tokens=9,
        slots=1,
        template_variables=variables,
        supports_thinking=thinks,
    )


@pytest.mark.parametrize(
    ("reports", "ignored"),
    [
        ([report(())], ("chat_template_kwargs.a", "reasoning_effort")),
        ([report(("a", "b"))], ("reasoning_effort",)),
        ([report(("b",)), report(("a",))], ("reasoning_effort",)),
        ([report(("a", "enable_thinking"))], ()),
        ([report((), thinks=True)], ("chat_template_kwargs.a",)),
        ([report((), thinks=None)], ("chat_template_kwargs.a",)),
        ([report(()), report(None)], ()),
        ([], ()),
    ],
)
def test_what_no_template_reads_changes_nothing(reports: list[ExpertReport], ignored: tuple[str, ...]) -> None:
    """A parameter is named of whose variables no template has any; where one is not known, nothing is said."""
    call = chat(reasoning_effort="none", chat_template_kwargs={"a": 1})
    assert call.generation.thinking_budget_tokens == 0
    assert idle_settings(call.variables, reports, bounded=True) == ignored


def test_a_face_has_its_own_names_for_what_changes_nothing() -> None:
    """The client reads the parameter that it has sent."""
    call = chat(reasoning_effort="low", user="u").called({"reasoning_effort": "think", "user": "who"})
    assert (call.variables, call.ignored) == ({"reasoning_effort": "think"}, ("who",))


@pytest.mark.parametrize("effort", ["huge", 3, True])
def test_an_unknown_effort_is_refused(effort: Any) -> None:
    """The error lists the efforts that there are."""
    with pytest.raises(ApiError, match="low, max, medium, minimal, none") as raised:
        chat(reasoning_effort=effort)
    assert raised.value.param == "reasoning_effort"
