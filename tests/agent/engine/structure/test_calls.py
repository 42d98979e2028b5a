"""Text or calls of tools, as the model likes, where a call keeps to rules."""

from __future__ import annotations

import json

import pytest

from moe2.agent.engine.calls.forms import BARE, HARMONY, HERMES, Caller
from moe2.agent.engine.structure.constraint import FREE, Constraint, GrammarError, constraint_of
from moe2.common.generation import Generation, ToolRules
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt, Tool
from tests.agent.engine.structure.following import COMPILER, END, allows

RAIN = Tool(
    name="rain",
    parameters=json.dumps({"type": "object", "properties": {"day": {"type": "integer"}}, "required": ["day"]}),
)
TIME = Tool(name="time.now", parameters='{"type": "object", "properties": {}}')
TAGGED, PLAIN = Caller(HERMES, {}), Caller(BARE, {})
STRICT = ToolRules(strict=("rain",))
GOOD = '{"name": "rain", "arguments": {"day": 1}}'
BAD = '{"name": "rain", "arguments": {"day": "Monday"}}'
LOOSE = '{"name": "time.now", "arguments": {"zone": "UTC"}}'


def constraint(rules: ToolRules | None = STRICT, *, tagged: bool, **form: str) -> Constraint:
    """What an answer must follow that may call both tools."""
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="?"),), tools=(RAIN, TIME))
    submit = Submit(job_id="j", request_id="r", model="m", prompt=prompt, tool_rules=rules, **form)  # type: ignore[arg-type]
    found = constraint_of(submit, TAGGED if tagged else PLAIN)
    assert found is not None
    return found


def accepts(asked: Constraint, text: str) -> bool:
    """Can the whole text be an answer?"""
    matcher = COMPILER.compile(asked)
    for byte in text.encode():
        if not allows(matcher.mask(), byte):
            return False
        matcher.accept(byte)
    mask = matcher.mask()
    return mask is None or allows(mask, END)


def call(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("text", ["", "It is 1 < 2.", "<b>", '{"title": 1}', "[1, 2]", '{"name": "Bob"}', "é\n" * 20])
def test_text_is_free(text: str, tagged: bool) -> None:
    """Whatever it looks like, as long as it is no call."""
    assert accepts(constraint(tagged=tagged), text)


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        (call(GOOD), True),
        (call(BAD), False),
        (call(LOOSE), True),
        (call('{"name": "other", "arguments": {}}'), False),
        ("Let me see.\n" + call(GOOD) + "\n" + call(LOOSE), True),
        ("Let me see.\n" + call(GOOD) + "\n" + call(BAD), False),
        (call(GOOD) + " Done.", True),
        ("<tool_call", True),
        ("<tool_call>", False),
        (call('{"name": "rain"}'), False),
    ],
)
def test_a_call_between_tags_keeps_to_its_tools_schema(text: str, is_allowed: bool) -> None:
    """From the tag on, wherever it stands. A tool that is not strict takes any object."""
    assert accepts(constraint(tagged=True), text) is is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        (GOOD, True),
        (BAD, False),
        (GOOD.replace("arguments", "parameters"), True),
        (BAD.replace("arguments", "parameters"), False),
        (LOOSE, True),
        (f"[{GOOD}, {LOOSE}]", True),
        (f"[{GOOD}, {BAD}]", False),
        (f"[{BAD}]", False),
        ('{"arguments": {"day": "Monday"}, "name": "rain"}', False),
        ('{"name": "rain"}', False),
        ('{"name": "time_now", "arguments": 1}', True),
    ],
)
def test_a_call_that_is_the_answer_keeps_to_its_tools_schema(text: str, is_allowed: bool) -> None:
    """Where models write no tags, what would be read as a call is one that follows the rules."""
    assert accepts(constraint(tagged=False), text) is is_allowed


@pytest.mark.parametrize("strict", [(), ("rain",)])
def test_a_single_call_ends_the_answer(strict: tuple[str, ...]) -> None:
    """`parallel_tool_calls: false`, with tags and without."""
    rules = ToolRules(strict=strict, parallel=False)
    tagged, bare = constraint(rules, tagged=True), constraint(rules, tagged=False)
    assert accepts(tagged, "So: " + call(GOOD))
    assert not accepts(tagged, call(GOOD) + "\n" + call(LOOSE))
    assert accepts(bare, GOOD)
    assert not accepts(bare, f"[{GOOD}, {LOOSE}]")


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(
    "form",
    [
        {"json_schema": '{"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}'},
        {"grammar": 'root ::= "{\\"wet\\": " ("true" | "false") "}"'},
        {"grammar": 'start: "{\\"wet\\": " ("true" | "false") "}"', "grammar_syntax": "lark"},
    ],
)
def test_text_that_is_no_call_has_the_answers_form(form: dict[str, str], tagged: bool) -> None:
    """`response_format` or a grammar beside tools."""
    asked = constraint(ToolRules(strict=("rain",)), tagged=tagged, **form)
    wrap = call if tagged else str
    assert accepts(asked, '{"wet": true}')
    assert accepts(asked, wrap(GOOD))
    for text in ("It is wet.", wrap(BAD), '{"wet": 1}'):
        assert not accepts(asked, text)


def test_without_rules_an_answer_with_tools_is_free() -> None:
    """The model calls as it likes, and no grammar slows it down."""
    prompt = ChatPrompt(messages=(), tools=(RAIN,))
    submit = Submit(job_id="j", request_id="r", model="m", prompt=prompt)
    assert constraint_of(submit, TAGGED) is None
    assert Generation().tool_rules is None


def test_a_model_with_a_channel_for_calls_is_bound_in_its_answer_alone_without_marks_to_select_by() -> None:
    """Its calls come where no grammar is followed."""
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="?"),), tools=(RAIN,))
    submit = Submit(job_id="j", request_id="r", model="m", prompt=prompt, tool_rules=STRICT, json_schema="{}")
    assert constraint_of(submit, Caller(HARMONY, {})) == Constraint(syntax="json_schema", source="{}")
    assert FREE.calls is None


def test_a_tools_schema_that_cannot_be_used_is_named_with_its_place() -> None:
    """Among several tools the error says which."""
    tool = Tool(name="odd", parameters='{"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}')
    prompt = ChatPrompt(messages=(), tools=(RAIN, tool))
    rules = ToolRules(strict=("rain", "odd"))
    submit = Submit(job_id="j", request_id="r", model="m", prompt=prompt, tool_rules=rules)
    found = constraint_of(submit, TAGGED)
    assert found is not None
    with pytest.raises(GrammarError, match="properties/a/pattern"):
        COMPILER.compile(found)
