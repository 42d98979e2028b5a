"""Messages in the form that a chat template wants. The templates are small ones, alike to those in the field."""

from __future__ import annotations

import msgspec
import pytest

from moe2.agent.engine.prompt.template import ChatTemplate, TemplateError
from moe2.agent.engine.prompt.thinking import marks_of
from moe2.common.link.prompts import ChatMessage, Tool, ToolCall

USER = ChatMessage(role="user", content="Is it wet?")
CALL = ChatMessage(
    role="assistant", content="", tool_calls=(ToolCall(id="abcdefghi", name="rain", arguments='{"day": "Monday"}'),)
)
ANSWER = ChatMessage(role="tool", content="Yes.", tool_call_id="abcdefghi")
PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }};{% endfor %}{% endfor %}"
CALLS = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}WRITTEN{% endfor %}{% endfor %}"


def shown(source: str, *messages: ChatMessage, variables: dict[str, object] | None = None) -> str:
    """The text that a template makes of a conversation."""
    template = ChatTemplate(source, bos="", eos="")
    return "".join(segment.text for segment in template.rendered(messages, (), variables or {}).segments)


def test_a_template_that_walks_over_parts_gets_parts() -> None:
    """As an image model's: of a text it would show nothing."""
    assert shown(PARTS, USER) == "Is it wet?;"


def test_parts_stay_apart_where_a_template_takes_them() -> None:
    """A client may have sent several."""
    assert shown(PARTS, ChatMessage(role="user", content="a\nb", parts=("a", "b"))) == "a;b;"


def test_a_template_that_takes_text_gets_the_parts_joined() -> None:
    """With a line's end between two."""
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert shown(source, ChatMessage(role="user", content="a\nb", parts=("a", "b"))) == "a\nb"


def test_a_template_that_takes_both_gets_text() -> None:
    """It is what most models were trained on."""
    source = (
        "{% for m in messages %}{% if m.content is string %}text:{{ m.content }}"
        "{% else %}{% for part in m.content %}part:{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert shown(source, USER) == "text:Is it wet?"


def test_a_template_that_fails_on_text_gets_parts_in_every_role() -> None:
    """Whichever role is tried, the messages around it have to be right, too."""
    source = "{% for m in messages %}{% for part in m.content %}{{ '<' + part.text + '>' }}{% endfor %}{% endfor %}"
    assert shown(source, ChatMessage(role="system", content="Be brief."), USER) == "<Be brief.><Is it wet?>"


def test_only_roles_that_need_parts_get_them() -> None:
    """A system's message may be text where a user's is a list."""
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '!' }}"
        "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert shown(source, ChatMessage(role="system", content="Be brief."), USER) == "Be brief.!Is it wet?"


def test_a_call_is_shown_by_a_template_that_tests_for_no_content() -> None:
    """It writes calls only beside content that is none."""
    source = (
        "{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert shown(source, USER, CALL, ANSWER) == "Is it wet?rainYes."


def test_a_template_may_test_for_no_content_and_join_arguments_to_text() -> None:
    """DeepSeek's R1 and V3 do both; a call beside a text is shown, too, behind it."""
    source = (
        "{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}"
        "{{ '<' + c.function.name + c.function.arguments + '>' }}{% endfor %}"
        "{% else %}{{ m.content + '!' }}{% endif %}{% endfor %}"
    )
    assert shown(source, USER, CALL, ANSWER) == 'Is it wet?!<rain{"day": "Monday"}>Yes.!'
    spoken = msgspec.structs.replace(CALL, content="I look.")
    assert shown(source, USER, spoken) == 'Is it wet?!I look.!<rain{"day": "Monday"}>'


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("({{ c.function.arguments | tojson }})", '({"day": "Monday"})'),
        ("{{ '(' + c.function.arguments + ')' }}", '({"day": "Monday"})'),
        ("({{ c.function.arguments }})", '({"day": "Monday"})'),
        ("{% for name, value in c.function.arguments | items %}{{ name }}={{ value }}{% endfor %}", "day=Monday"),
    ],
)
def test_arguments_are_an_object_or_text_as_the_template_wants(written: str, expected: str) -> None:
    """Never as Python prints an object."""
    assert shown(CALLS.replace("WRITTEN", written), USER, CALL, ANSWER) == f"rain{expected}"


def test_generation_blocks_change_no_text() -> None:
    """They mark what training counts."""
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert shown(source, USER) == "Is it wet?"


def test_earlier_reasoning_reaches_a_template_that_shows_it() -> None:
    """By either of its names."""
    message = ChatMessage(role="assistant", content="Yes.", reasoning_content="Clouds.")
    for name in ("reasoning_content", "thinking"):
        source = "{% for m in messages %}{{ m.NAME or '' }}{{ m.content }}{% endfor %}".replace("NAME", name)
        assert shown(source, USER, message, USER) == "Is it wet?Clouds.Yes.Is it wet?"


# --- Variables --------------------------------------------------------------------------------------------------------


def test_a_clients_variables_reach_the_template() -> None:
    """Whatever their kind."""
    assert shown("{{ effort }}{{ n + 1 }}", USER, variables={"effort": "low", "n": 2}) == "low3"


def test_a_client_cannot_replace_what_is_the_templates_own() -> None:
    """The conversation stays the one that was sent, and functions stay functions."""
    variables: dict[str, object] = {"messages": [], "add_generation_prompt": False, "raise_exception": "no"}
    with pytest.raises(TemplateError, match=r"Is it wet\?True"):
        shown("{{ raise_exception(messages[0].content ~ add_generation_prompt) }}", USER, variables=variables)


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_thinking_is_switched_off_by_the_templates_own_name(name: str) -> None:
    """Some models' templates have another name for the same."""
    source = "{% if NAME is defined and not NAME %}off{% else %}on{% endif %}".replace("NAME", name)
    template = ChatTemplate(source, bos="", eos="")
    for may_think, expected in ((True, "on"), (False, "off")):
        [segment] = template.rendered((USER,), may_think=may_think).segments
        assert segment.text == expected
    assert shown(source, USER, variables={"enable_thinking": False}) == "off"


THINKS = (
    "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}<think>\n{% if enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}"
)
ALWAYS = "{% for m in messages %}[{{ m.content }}]{% endfor %}<think>"


@pytest.mark.parametrize(
    ("source", "content", "variables", "begun"),
    [
        (THINKS, "Hi", {}, "<think>\n"),
        (THINKS, "Hi", {"enable_thinking": False}, "<think>\n</think>\n\n"),
        (THINKS, "<think>", {}, "<think>\n"),
        (ALWAYS, "Hi", {}, "<think>"),
        ("{{ messages[0].content }}</think>", "<think> is a mark", {}, ""),
        ("{{ messages[0].content }}{# </think> #}", "Hi", {}, ""),
    ],
)
def test_what_the_template_has_begun_is_known(
    source: str, content: str, variables: dict[str, object], begun: str
) -> None:
    """It is read from what comes after the conversation, whatever a message says about marks."""
    template = ChatTemplate(source, bos="", eos="", marks=marks_of(source + "</think>", lambda text: False))
    rendered = template.rendered((ChatMessage(role="user", content=content),), (), variables)
    assert rendered.begun == begun


def test_a_template_without_tools_still_refuses_them() -> None:
    """Trying forms of messages does not make it one that has tools."""
    with pytest.raises(TemplateError, match="no tools"):
        ChatTemplate(PARTS, bos="", eos="").rendered((USER,), (Tool(name="f"),))
