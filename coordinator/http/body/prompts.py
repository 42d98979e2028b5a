"""What stands beside a prompt's words: several prompts, token ids, variables of the chat template, thinking. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from moe2.common.link.prompts import TextPrompt
from moe2.common.link.reports import ExpertReport
from moe2.coordinator.http.body.requests import MAX_PROMPTS, Effort
from moe2.coordinator.http.errors import invalid

MAX_KWARGS_BYTES = 16_384
RESERVED_VARIABLES = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("bos_token", "eos_token", "raise_exception", "strftime_now", "range", "dict", "namespace", "lipsum"),
        *("cycler", "joiner"),
    }
)
"""The variables and functions of chat templates that are not the client's to set."""
THINKING_BUDGETS: dict[str, int | None] = {
    "none": 0,
    "minimal": 256,
    "low": 1024,
    "medium": 8192,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""The most tokens of thinking for each `reasoning_effort`; None sets no limit."""
_SHOWN_EFFORTS: dict[str, str] = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""What a template is told that knows three efforts, for those that it does not know."""


def prompts_of(prompt: str | Sequence[str | int | Sequence[int]]) -> tuple[TextPrompt, ...]:
    """Returns the prompts of a text completion: one, or as many as the list has. Raises `ApiError` (400).

    Each is a text, or the ids of its tokens. A list of numbers is one prompt.
    """
    if isinstance(prompt, str):
        return (TextPrompt(text=prompt),)
    if all(isinstance(each, int) for each in prompt):
        return (TextPrompt(text="", tokens=tuple(each for each in prompt if isinstance(each, int))),)
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"'prompt' must be a list of at most {MAX_PROMPTS} prompts.", param="prompt")
    if all(isinstance(each, str) for each in prompt):
        return tuple(TextPrompt(text=each) for each in prompt if isinstance(each, str))
    if all(isinstance(each, list) for each in prompt):
        return tuple(TextPrompt(text="", tokens=tuple(each)) for each in prompt if isinstance(each, list))
    raise invalid(
        "'prompt' must be a list of strings, of token ids, or of lists of token ids, not of both.", param="prompt"
    )


def thinking_of(effort: Effort | None, kwargs: Mapping[str, Any]) -> tuple[str, int | None]:
    """Returns the template's variables, as the JSON text of an object, and the most tokens of thinking.

    An effort becomes both: the variable `reasoning_effort` for templates that have it, `enable_thinking` where it is
    "none", and a limit for all others. What `kwargs` says itself is kept. Raises `ApiError` (400).
    """
    for name in kwargs:
        if name in RESERVED_VARIABLES:
            raise invalid(
                f"'chat_template_kwargs.{name}' is not the client's to set.", param=f"chat_template_kwargs.{name}"
            )
    variables = dict(kwargs)
    if effort is not None:
        variables = {"reasoning_effort": _SHOWN_EFFORTS.get(effort, effort), **variables}
        if effort == "none":
            variables = {"enable_thinking": False, **variables}
    try:
        content = msgspec.json.encode(variables)
    except (RecursionError, msgspec.MsgspecError) as error:
        raise invalid(f"'chat_template_kwargs' cannot be used: {error}.", param="chat_template_kwargs") from None
    if len(content) > MAX_KWARGS_BYTES:
        raise invalid(f"'chat_template_kwargs' has more than {MAX_KWARGS_BYTES} bytes.", param="chat_template_kwargs")
    return content.decode(), None if effort is None else THINKING_BUDGETS[effort]


def set_by(effort: Effort | None, kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Returns the variables that `thinking_of` sets, each with the parameter that sets it."""
    variables = {name: f"chat_template_kwargs.{name}" for name in kwargs}
    if effort is not None:
        variables.setdefault("reasoning_effort", "reasoning_effort")
    if effort == "none":
        variables.setdefault("enable_thinking", "reasoning_effort")
    return variables


def idle_settings(variables: Mapping[str, str], reports: Sequence[ExpertReport], *, bounded: bool) -> tuple[str, ...]:
    """Returns the parameters whose variables no chat template of these experts has; none where one is not known.

    variables: each with the parameter that sets it. bounded: an effort bounds the thinking, too, of models that think.
    """
    known: set[str] = set()
    for report in reports:
        if report.template_variables is None:
            return ()
        known.update(report.template_variables)
        if bounded and report.supports_thinking is not False:
            known.add("reasoning_effort")
    used = {name for variable, name in variables.items() if variable in known}
    return tuple(dict.fromkeys(name for name in variables.values() if name not in used)) if reports else ()
