"""Chat templates from GGUF files."""

from __future__ import annotations

import pytest

from moe2.agent.engine.template import ChatTemplate, TemplateError
from moe2.common.messages import ChatMessage

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>")


def test_a_conversation_ends_where_the_answer_begins() -> None:
    """The generation prompt is asked for."""
    text = _template(_CHATML).render((ChatMessage(role="user", content="hi"),))
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_can_refuse_a_conversation() -> None:
    """`raise_exception` becomes an error with the template's own words."""
    template = _template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TemplateError, match="roles must alternate"):
        template.render((ChatMessage(role="user", content="hi"),))


def test_a_template_cannot_reach_the_interpreter() -> None:
    """A stranger's template runs in a sandbox."""
    template = _template("{{ messages.__class__.__mro__ }}")
    with pytest.raises(TemplateError):
        template.render((ChatMessage(role="user", content="hi"),))


def test_an_invalid_template_is_an_error_that_names_the_fault() -> None:
    """A syntax error is found when the model is loaded."""
    with pytest.raises(TemplateError, match="invalid"):
        _template("{% for %}")


def test_a_template_that_trips_over_a_message_is_a_clear_error() -> None:
    """A failure inside the template is the conversation's error, not a crash."""
    with pytest.raises(TemplateError, match="failed on this conversation"):
        _template("{{ messages[0]['content'] + 1 }}").render((ChatMessage(role="user", content="hi"),))
