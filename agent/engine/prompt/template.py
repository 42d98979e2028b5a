"""Chat templates: a conversation to the text the model was trained on, by the Jinja template its GGUF carries.

Templates come from strangers' files, so they run in Jinja's sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from msgspec.structs import replace

from moe2.agent.engine.calls.forms import form_of
from moe2.agent.engine.prompt.conventions import conventions_of
from moe2.agent.engine.prompt.quotation import Quotation, Segment
from moe2.agent.engine.prompt.thinking import Marks
from moe2.common.errors import Moe2Error
from moe2.common.link.prompts import ChatMessage, Tool, ToolCall

_NO_TOOLS = "This model's template has no tools."
_WITHOUT_TOOLS = "Leave out the tools and their calls, or use a model whose chat template takes them."
_SETTABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CONVERSATION = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
"""What a template has from the conversation and the model, whatever a client sets."""
NO_VARIABLES: Mapping[str, Any] = {}
_TAIL_CHARACTERS = 256
"""What a template writes behind the conversation is shorter."""
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


class _Transparent(jinja2.ext.Extension):
    """`{% generation %}` blocks mark what training counts; they change no text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own type

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Returns the block's own content."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, ending where the assistant's answer begins.

    begun: what the template has written of the answer itself: from the mark of its reasoning on, where it has one.
    """

    segments: tuple[Segment, ...]
    begun: str = ""


class ChatTemplate:
    """One model's chat template, compiled once."""

    def __init__(
        self, source: str, *, bos: str, eos: str, quotation: Quotation | None = None, marks: Marks | None = None
    ) -> None:
        """quotation: of the model's control tokens. marks: of its reasoning, if it has any.

        Raises `TemplateError` where the template itself is invalid.
        """
        self._quotation = quotation or Quotation(())
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Transparent]
        )
        environment.globals["raise_exception"] = _refuse
        # Jinja's own escapes for HTML and sorts keys; models were trained on plain JSON.
        environment.filters["tojson"] = _json
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
            self._variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"The model's chat template is invalid: {error}.",
                remedy="Use a GGUF file with a valid template, or send plain completions.",
            ) from error
        self._functions = frozenset(environment.globals)
        also = {"enable_thinking"} if "thinking" in self._variables else set()
        names = (self._variables | also) - self._functions - _CONVERSATION
        self.variables = frozenset(name for name in names if _SETTABLE.fullmatch(name))
        """The variables that a client can set, by the names under which they change something."""
        self._constants = {"bos_token": bos, "eos_token": eos}
        self._marks = marks
        self._names_thoughts = "reasoning_content" not in source and "thinking" in source
        self.call_form = form_of(source)
        """The form in which the model writes calls."""
        self._conventions = conventions_of(self._attempt)
        self.shows_tools = self._shows(_ASKED, _PROBE_TOOLS)
        """The template writes down the tools that are offered."""
        self._shows_calls = self._shows(_CALLED, ())

    def render(self, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...] = ()) -> tuple[Segment, ...]:
        """The conversation as text (see `rendered`)."""
        return self.rendered(messages, tools).segments

    def rendered(
        self,
        messages: tuple[ChatMessage, ...],
        tools: tuple[Tool, ...] = (),
        variables: Mapping[str, Any] = NO_VARIABLES,
        *,
        may_think: bool = True,
    ) -> Rendered:
        """The conversation as text, ending where the assistant's answer begins. Raises `TemplateError`.

        What messages and tools say is quoted where it spells control tokens; the template's own are its own.
        variables: what a client sets of the template's variables. may_think: False switches reasoning off where the
        template can.
        """
        if tools and not self.shows_tools:
            raise TemplateError(_NO_TOOLS, remedy=_WITHOUT_TOOLS)
        if not self._shows_calls and any(message.tool_calls or message.role == "tool" for message in messages):
            raise TemplateError(_NO_TOOLS, remedy=_WITHOUT_TOOLS)
        chosen = self._thinking(variables, may_think=may_think)
        content = [self._message(each) for message in messages for each in self._shown(message)]
        offered = [_tool(tool) for tool in tools]
        text = self._render(content, offered, chosen)
        return Rendered(self._quotation.segments(text), self._begun(text, content, offered, chosen))

    def _thinking(self, variables: Mapping[str, Any], *, may_think: bool) -> dict[str, Any]:
        """The client's variables, with what says the same to this template where it has another name for it."""
        chosen = {name: value for name, value in variables.items() if name not in self._functions}
        if not may_think:
            chosen.setdefault("enable_thinking", False)
        if "enable_thinking" in chosen and "enable_thinking" not in self._variables and "thinking" in self._variables:
            chosen.setdefault("thinking", chosen["enable_thinking"])
        if not may_think and "thinking_budget" in self._variables:
            chosen.setdefault("thinking_budget", 0)
        return chosen

    def _begun(self, text: str, content: Any, tools: Any, variables: dict[str, Any]) -> str:
        if self._marks is None or self._marks.is_harmony or self._marks.opening not in text[-_TAIL_CHARACTERS:]:
            return ""
        try:
            before = self._render(content, tools, variables, asks=False)
        except TemplateError:
            before = ""
        if len(before) < len(text) and text.startswith(before):
            # What comes before is the conversation, whatever it says about marks.
            tail = text[len(before) :]
            at = tail.rfind(self._marks.opening)
            return tail[at:] if at >= 0 else ""
        tail = text[text.rfind(self._marks.opening) :]
        thought = tail.removeprefix(self._marks.opening).rstrip().removesuffix(self._marks.closing)
        return "" if thought.strip() else tail

    def _shows(self, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...]) -> bool:
        """Does the probe's name reach the text?"""
        content = [self._message(message) for message in messages]
        return _PROBE in (self._attempt(content, [_tool(tool) for tool in tools]) or "")

    def _attempt(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str | None:
        try:
            return self._render(list(messages), list(tools), {})
        except TemplateError:
            return None

    def _render(self, messages: Any, tools: Any, chosen: dict[str, Any], *, asks: bool = True) -> str:
        variables: dict[str, Any] = {
            **self._quotation.quote(chosen),
            **self._constants,
            "messages": self._quotation.quote(messages),
            "tools": self._quotation.quote(tools) or None,
            "add_generation_prompt": asks,
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

    def _shown(self, message: ChatMessage) -> tuple[ChatMessage, ...]:
        """A message as the template shows all of it: what is said beside calls is a message of its own where the
        template passes over calls that have a text."""
        if not (message.tool_calls and message.content and self._conventions.null_content):
            return (message,)
        calls = replace(message, content="", parts=(), reasoning_content=None)
        return replace(message, tool_calls=()), calls

    def _message(self, message: ChatMessage) -> dict[str, Any]:
        conventions, calls = self._conventions, message.tool_calls
        texts = message.parts or (message.content,)
        content: dict[str, Any] = {
            "role": message.role,
            "content": conventions.content(message.role, texts, has_calls=bool(calls)),
        }
        if message.name is not None:
            content["name"] = message.name
        if message.tool_call_id is not None:
            content["tool_call_id"] = message.tool_call_id
        if message.reasoning_content is not None:
            content["reasoning_content"] = message.reasoning_content
            if self._names_thoughts:
                content["thinking"] = message.reasoning_content
        if calls:
            content["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": conventions.arguments(call.arguments)},
                }
                for call in calls
            ]
        return content


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
