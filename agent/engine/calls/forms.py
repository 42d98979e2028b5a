"""PURE: the forms in which models write calls of tools, by the marks in their chat templates.

Models agree as little on how a call is written as on anything else: as JSON between tags, as a list behind a control
token, with the arguments between tags of their own, as Python. What all of them become is what Hermes models write
(`canonical`), which the coordinator reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Style(StrEnum):
    """What stands between the marks of a call."""

    OBJECTS = "objects"
    """A JSON object with name and arguments, or a list of them."""
    NAMED = "named"
    """The name, then the arguments as a JSON object."""
    PARAMETERS = "parameters"
    """The name, then each argument between marks; a text stands there as it is, anything else as JSON."""
    PYTHON = "python"
    """A list of Python's calls, with arguments by their names."""
    CHANNELS = "channels"
    """gpt-oss's messages, each in a channel (`engine.prompt.thinking`); the arguments are a message's body."""
    RECIPIENTS = "recipients"
    """Messages to recipients, of which one is the user: `>>>all` or `>>>NAME`, a line's end, then the content."""


@dataclass(frozen=True)
class CallForm:
    """A form of calls.

    signs: texts that are all in the chat template of a model that writes so. opening, closing: what is around all
    calls, or, with `each`, around every one; empty for none. head, neck, tail: what is before a call's name, between
    the name and the arguments, and behind these. parameter: what is before an argument's name, between that and its
    value, and behind the value. is_list: calls are written as a list where they are JSON objects. name_key,
    arguments_key: keys of these objects. controls: marks that are control tokens in the vocabularies of such models.
    """

    name: str
    style: Style
    signs: tuple[str, ...]
    opening: str = ""
    closing: str = ""
    each: bool = False
    head: str = ""
    neck: str = ""
    tail: str = ""
    parameter: tuple[str, str, str] = ("", "", "")
    is_list: bool = False
    name_key: str = "name"
    arguments_key: str = "arguments"
    controls: tuple[str, ...] = ()

    @property
    def begins(self) -> str:
        """The mark by which a call is told from text; empty where a call is the whole answer."""
        return (self.opening or self.head).strip()

    @property
    def ends(self) -> str:
        """The mark that ends calls; empty where the answer's end does."""
        return (self.closing or ("" if self.opening else self.tail)).strip()


HERMES = CallForm(
    "hermes",
    Style.OBJECTS,
    ("<tool_call>",),
    "<tool_call>\n",
    "\n</tool_call>",
    each=True,
    controls=("<tool_call>", "</tool_call>"),
)
"""What Hermes and Qwen models write; the coordinator reads it."""
BARE = CallForm("bare", Style.OBJECTS, ())
"""A call is the whole answer: a JSON object, or a list of them; the coordinator reads it, too."""
HARMONY = CallForm("harmony", Style.CHANNELS, (), controls=("<|channel|>", "<|message|>"))
"""What gpt-oss writes, whose calls are told from the answer with its reasoning."""
_XML = ("<parameter=", ">\n", "\n</parameter>\n")
_CODER = {"head": "<function=", "neck": ">\n", "tail": "</function>\n", "parameter": _XML, "each": True}
_DEEPSEEK = {
    "opening": "<｜tool▁calls▁begin｜>",
    "closing": "<｜tool▁calls▁end｜>",
    "controls": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
}

FORMS = (
    CallForm(
        "minimax",
        Style.PARAMETERS,
        ("<minimax:tool_call>", "<invoke name="),
        "<minimax:tool_call>\n",
        "</minimax:tool_call>",
        head='<invoke name="',
        neck='">\n',
        tail="</invoke>\n",
        parameter=('<parameter name="', '">', "</parameter>\n"),
        controls=("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    CallForm(
        "seed",
        Style.PARAMETERS,
        ("<seed:tool_call>",),
        "<seed:tool_call>\n",
        "</seed:tool_call>",
        controls=("<seed:tool_call>", "</seed:tool_call>"),
        **_CODER,  # type: ignore[arg-type]
    ),
    CallForm(
        "qwen-coder",
        Style.PARAMETERS,
        ("<tool_call>", "<function=", "<parameter="),
        "<tool_call>\n",
        "</tool_call>",
        controls=("<tool_call>", "</tool_call>"),
        **_CODER,  # type: ignore[arg-type]
    ),
    CallForm(
        "glm",
        Style.PARAMETERS,
        ("<tool_call>", "<arg_key>"),
        "<tool_call>",
        "</tool_call>",
        each=True,
        neck="\n",
        parameter=("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
        controls=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    CallForm(
        "kimi",
        Style.NAMED,
        ("<|tool_calls_section_begin|>",),
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        head="<|tool_call_begin|>functions.",
        neck=":0<|tool_call_argument_begin|>",
        tail="<|tool_call_end|>",
        controls=(
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ),
    ),
    CallForm(
        "deepseek-v3",
        Style.NAMED,
        ("<｜tool▁calls▁begin｜>", "```json"),
        head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        neck="\n```json\n",
        tail="\n```<｜tool▁call▁end｜>",
        **_DEEPSEEK,  # type: ignore[arg-type]
    ),
    CallForm(
        "deepseek-v3.1",
        Style.NAMED,
        ("<｜tool▁calls▁begin｜>",),
        head="<｜tool▁call▁begin｜>",
        neck="<｜tool▁sep｜>",
        tail="<｜tool▁call▁end｜>",
        **_DEEPSEEK,  # type: ignore[arg-type]
    ),
    CallForm(
        "mistral-args",
        Style.NAMED,
        ("[TOOL_CALLS]", "[ARGS]"),
        head="[TOOL_CALLS]",
        neck="[ARGS]",
        controls=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    ),
    CallForm("mistral", Style.OBJECTS, ("[TOOL_CALLS]",), "[TOOL_CALLS]", is_list=True, controls=("[TOOL_CALLS]",)),
    CallForm(
        "command",
        Style.OBJECTS,
        ("<|START_ACTION|>",),
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        is_list=True,
        name_key="tool_name",
        arguments_key="parameters",
        controls=("<|START_ACTION|>", "<|END_ACTION|>"),
    ),
    CallForm(
        "lfm",
        Style.PYTHON,
        ("<|tool_call_start|>",),
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        controls=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    CallForm(
        "granite",
        Style.OBJECTS,
        ("<|tool_call|>",),
        "<|tool_call|>",
        is_list=True,
        controls=("<|tool_call|>", "<|/tool_call|>"),
    ),
    CallForm("nemotron", Style.OBJECTS, ("<TOOLCALL>",), "<TOOLCALL>", "</TOOLCALL>", is_list=True),
    CallForm("hunyuan", Style.OBJECTS, ("<tool_calls>",), "<tool_calls>", "</tool_calls>", is_list=True),
    CallForm("functionary-v3.2", Style.RECIPIENTS, (">>>all",), head=">>>", neck="\n"),
    HERMES,
    CallForm("functionary-v3.1", Style.NAMED, ("<function=",), head="<function=", neck=">", tail="</function>"),
    CallForm(
        "llama",
        Style.OBJECTS,
        ("<|python_tag|>",),
        "<|python_tag|>",
        arguments_key="parameters",
        controls=("<|python_tag|>",),
    ),
    CallForm("pythonic", Style.PYTHON, ("func_name1(",)),
)
"""Forms of models in the field. Where the signs of several are there, the first one counts."""
BY_NAME: Mapping[str, CallForm] = {form.name: form for form in (*FORMS, BARE, HARMONY)}


def form_of(source: str) -> CallForm:
    """Returns the form of calls that a chat template tells of; `BARE` where it tells of none."""
    return next((form for form in FORMS if all(sign in source for sign in form.signs)), BARE)


@dataclass(frozen=True)
class Caller:
    """A form of calls in one model's own tokens. controls: those of the form's marks that are control tokens there."""

    form: CallForm
    controls: Mapping[str, int]

    @classmethod
    def of(cls, form: CallForm, tokens_of: Callable[[str], Sequence[int]], piece: Callable[[int], bytes]) -> Caller:
        """Returns the caller of a model. tokens_of: a text's tokens, control tokens among them. piece: what an answer
        shows of a token, nothing of a control token."""
        alone = {mark: tokens_of(mark) for mark in form.controls}
        hidden = {mark: tokens[0] for mark, tokens in alone.items() if len(tokens) == 1 and not piece(tokens[0])}
        return cls(form, hidden)

    @property
    def is_read_as_it_stands(self) -> bool:
        """Whether the coordinator reads what the model writes, so that nothing has to be made `canonical`."""
        return self.form in (BARE, HARMONY) or (self.form is HERMES and not self.controls)

    def spelled(self) -> dict[int, bytes]:
        """Returns the text of each control token that is a mark."""
        return {token: mark.encode() for mark, token in self.controls.items()}


def atoms(text: str, controls: Mapping[str, int]) -> list[str | int]:
    """Returns a text cut into what is plain, and the control tokens in it."""
    if not controls:
        return [text] if text else []
    pattern = "|".join(re.escape(mark) for mark in sorted(controls, key=len, reverse=True))
    parts = re.split(f"({pattern})", text)
    return [controls.get(part, part) for part in parts if part]
