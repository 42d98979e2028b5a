"""Reasoning as the families in the field write it, drawn token by token: with forms, bounds, calls and stop strings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from moe2.agent.engine.calls.forms import BARE, BY_NAME, HARMONY, HERMES, Caller, CallForm
from moe2.agent.engine.prompt.thinking import marks_of
from moe2.common.generation import ToolRules
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt, Tool
from tests.agent.engine.wishes import Alphabet, Written, written

TOOL = Tool(
    name="rain", parameters='{"type": "object", "properties": {"day": {"type": "integer"}}, "required": ["day"]}'
)
GOOD = '{"day": 1}'


@dataclass(frozen=True)
class Family:
    """source: what its template has of marks. thought, answer: how each is written. begun: by the template itself."""

    source: str
    marks: tuple[str, ...]
    ends: tuple[str, ...]
    thought: str
    answer: str
    form: CallForm
    call: str
    begun: str = ""

    def write(self, text: str, *, tools: tuple[Tool, ...] = (), **fields: Any) -> Written:
        alphabet = Alphabet(self.marks, self.ends)
        marks = marks_of(self.source, lambda mark: mark in self.marks)
        prompt = ChatPrompt(messages=(ChatMessage(role="user", content="?"),), tools=tools)
        request = Submit(job_id="j", request_id="r", model="m", prompt=prompt, **fields)
        controls = {mark: alphabet.places[mark] for mark in self.form.controls if mark in self.marks}
        return written(alphabet, request, text, caller=Caller(self.form, controls), marks=marks, begun=self.begun)


DEEPSEEK = BY_NAME["deepseek-v3"]
FAMILIES = {
    "Qwen3": Family(
        "{{ '<think>' }}{{ content.split('</think>') }}<tool_call>",
        ("<|im_end|>", "<think>", "</think>"),
        ("<|im_end|>",),
        "<think>\n{}\n</think>\n\n",
        "{}<|im_end|>",
        HERMES,
        '<tool_call>\n{{"name": "rain", "arguments": {}}}\n</tool_call><|im_end|>',
    ),
    "DeepSeek-R1": Family(
        "{{ content.split('</think>')[-1] }}<｜Assistant｜><think>\n",
        ("<｜end▁of▁sentence｜>", "<think>", "</think>", *DEEPSEEK.controls),
        ("<｜end▁of▁sentence｜>",),
        "{}\n</think>\n\n",
        "{}<｜end▁of▁sentence｜>",
        DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>rain\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        begun="<think>\n",
    ),
    "Magistral": Family(
        "[THINK][/THINK][TOOL_CALLS][ARGS]",
        ("</s>", "[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"),
        ("</s>",),
        "[THINK]{}[/THINK]",
        "{}</s>",
        BY_NAME["mistral-args"],
        "[TOOL_CALLS]rain[ARGS]{}</s>",
    ),
    "gpt-oss": Family(
        "<|start|><|channel|><|message|>",
        ("<|return|>", "<|call|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>"),
        ("<|return|>", "<|call|>"),
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
        "<|channel|>final<|message|>{}<|return|>",
        HARMONY,
        "<|channel|>commentary to=functions.rain <|constrain|>json<|message|>{}<|call|>",
    ),
    "a text's own marks": Family(
        "<think></think>",
        ("<end>",),
        ("<end>",),
        "<think>{}</think>",
        "{}<end>",
        BARE,
        '{{"name": "rain", "arguments": {}}}<end>',
    ),
}
"""Marks are control tokens in the first ones, and spelled out by several tokens in the last."""
EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
WITH_TOKENS = pytest.mark.parametrize("family", list(FAMILIES.values())[:-1], ids=list(FAMILIES)[:-1])
"""Those that may think before an answer of a given form: what several tokens spell could begin the answer, too."""


@EACH
def test_reasoning_and_answer_come_apart(family: Family) -> None:
    """Without marks in either, and with no more pieces than tokens."""
    found = family.write(family.thought.format("Let me see.\nTwo.") + family.answer.format("It is 4."))
    assert (found.thought.strip(), found.answer) == ("Let me see.\nTwo.", "It is 4.")
    assert found.reasoning_tokens > 0
    assert len(found.pieces) <= found.decoded_tokens + 1


@WITH_TOKENS
def test_a_form_holds_in_the_answer_alone(family: Family) -> None:
    """The model thinks in words, and then writes what follows the schema."""
    text = family.thought.format("Maybe {4}?").rstrip("\n") + family.answer.format("17")
    found = family.write(text, json_schema='{"type": "integer"}')
    assert (found.thought.strip(), found.answer, found.refused) == ("Maybe {4}?", "17", [])


def test_a_form_leaves_no_room_for_reasoning_whose_mark_is_several_tokens() -> None:
    """The answer begins at once, and follows its form."""
    found = FAMILIES["a text's own marks"].write("<think>a</think>17<end>", json_schema='{"type": "integer"}')
    assert (found.thought, found.answer) == ("", "1")


def test_reasoning_whose_mark_is_several_tokens_hides_no_call_from_its_schema() -> None:
    """Beside strict tools such a mark is text, so that what follows it is no call either."""
    text = '<think>I look.</think>{"name": "rain", "arguments": {"day": "x"}}'
    family = FAMILIES["a text's own marks"]
    found = family.write(text + "<end>", tools=(TOOL,), tool_rules=ToolRules(strict=("rain",)))
    assert (found.thought, found.answer) == ("", text)


@EACH
def test_a_stop_string_is_looked_for_in_the_answer_alone(family: Family) -> None:
    """In the reasoning it stops nothing."""
    found = family.write(family.thought.format("stop here?") + family.answer.format("Do not stop."), stop=("stop",))
    assert (found.thought.strip(), found.answer) == ("stop here?", "Do not ")


@EACH
def test_a_bound_ends_the_reasoning_and_the_answer_follows(family: Family) -> None:
    """The closing mark is written for the model, which goes on with what it wants to say next."""
    found = family.write(family.thought.format("a" * 200), thinking_budget_tokens=5, max_tokens=120)
    assert 5 <= found.reasoning_tokens <= 6
    assert set(found.thought.strip()) == {"a"}


@WITH_TOKENS
@pytest.mark.parametrize("rules", [None, ToolRules(strict=("rain",)), ToolRules(parallel=False)])
def test_a_call_after_reasoning_is_a_call(family: Family, rules: ToolRules | None) -> None:
    """Whatever form it has, free or held to its schema, it comes out in the one form that the coordinator reads."""
    found = family.write(family.thought.format("I look.") + family.call.format(GOOD), tools=(TOOL,), tool_rules=rules)
    assert found.thought.strip() == "I look."
    assert found.refused == []
    plain = found.answer.replace("<tool_call>", "").replace("</tool_call>", "").strip()
    assert plain == f'{{"name": "rain", "arguments": {GOOD}}}'


@WITH_TOKENS
def test_a_strict_call_after_reasoning_keeps_to_its_schema(family: Family) -> None:
    """The model wants a text for a number, and has to write a number."""
    text = family.thought.format("I look.") + family.call.format('{"day": "x"}')
    found = family.write(text, tools=(TOOL,), tool_rules=ToolRules(strict=("rain",)))
    assert found.refused[0] == ord('"')
    assert '"x"' not in found.answer
