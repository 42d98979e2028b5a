"""Chat templates: a conversation to the text the model was trained on, by the Jinja template its GGUF carries.

Templates come from strangers' files, so they run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from moe2.agent.engine.quotation import Quotation, Segment
from moe2.common.errors import Moe2Error
from moe2.common.link.messages import ChatMessage, Tool, ToolCall

_NO_TOOLS = "This model's template has no tools."
_WITHOUT_TOOLS = "Leave out the tools and their calls, or use a model whose chat template takes them."
_PROBE = "probe_of_tools"
_PROBE_TOOLS = (Tool(name=_PROBE, description="A probe.", parameters='{"type": "object", "properties": {}}'),)
_ASKED = (ChatMessage(role="user", content="?"),)
_CALLED = (
    *_ASKED,
    ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="call00001", name=_PROBE, arguments="{}"),)),
    ChatMessage(role="tool", content="!", name="tool", tool_call_id="call00001"),
)


class TemplateError(Moe2Error):
    """The model's chat template is missing, invalid, or refuses this conversation."""


class ChatTemplate:
    """One model's chat template, compiled once."""

    def __init__(self, source: str, *, bos: str, eos: str, quotation: Quotation | None = None) -> None:
        """`quotation`: of the model's control tokens. Raises `TemplateError` where the template itself is invalid."""
        self._quotation = quotation or Quotation(())
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        # Jinja's own escapes for HTML and sorts keys; models were trained on plain JSON.
        environment.filters["tojson"] = _json
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"The model's chat template is invalid: {error}.",
                remedy="Use a GGUF file with a valid template, or send plain completions.",
            ) from error
        self._constants = {"bos_token": bos, "eos_token": eos}
        self.tags_calls = "<tool_call>" in source
        """The model writes calls between <tool_call> tags."""
        self.shows_tools = self._shows(_ASKED, _PROBE_TOOLS)
        """The template writes down the tools that are offered."""
        self._shows_calls = self._shows(_CALLED, ())

    def render(self, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...] = ()) -> tuple[Segment, ...]:
        """The conversation as text, ending where the assistant's answer begins. Raises `TemplateError`.

        What messages and tools say is quoted where it spells control tokens; the template's own are its own.
        """
        if tools and not self.shows_tools:
            raise TemplateError(_NO_TOOLS, remedy=_WITHOUT_TOOLS)
        if not self._shows_calls and any(message.tool_calls or message.role == "tool" for message in messages):
            raise TemplateError(_NO_TOOLS, remedy=_WITHOUT_TOOLS)
        return self._quotation.segments(self._render(messages, tools))

    def _shows(self, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...]) -> bool:
        """Does the probe's name reach the text?"""
        try:
            return _PROBE in self._render(messages, tools)
        except TemplateError:
            return False

    def _render(self, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...]) -> str:
        variables: dict[str, Any] = {
            **self._constants,
            "messages": self._quotation.quote([_message(message) for message in messages]),
            "tools": self._quotation.quote([_tool(tool) for tool in tools]) or None,
            "add_generation_prompt": True,
        }
        try:
            return self._template.render(variables)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"The model's chat template refuses this conversation: {error}.",
                remedy="Check the roles and their order.",
            ) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            raise TemplateError(
                f"The model's chat template failed on this conversation: {type(error).__name__}: {error}.",
                remedy="Check the roles and their order.",
            ) from error


def _message(message: ChatMessage) -> dict[str, Any]:
    content: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        content["name"] = message.name
    if message.tool_call_id is not None:
        content["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        content["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    return content


def _arguments(call: ToolCall) -> Any:
    """Templates write arguments down as JSON, so they get the object and not its text."""
    try:
        return json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": {**function, "parameters": json.loads(tool.parameters)}}


def _json(value: Any, **options: Any) -> str:
    """The `tojson` that chat templates expect, with its options (indent, separators, sort_keys, ensure_ascii)."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(reason: str) -> NoReturn:
    """The `raise_exception` that templates call to refuse a conversation."""
    raise jinja2.TemplateError(reason)
