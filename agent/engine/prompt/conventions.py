"""PURE: what form a chat template wants messages in, found by trying it once.

Templates agree on `messages` and little else. Some take a message's content as text, others as a list of parts, and
pass over the other form in silence; some want the arguments of a call as an object and others as JSON text; some write
a call down only where the content beside it is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

_WORD = "probe_of_conventions"
_KEY, _VALUE = "probe_key", "probe value"

Render = Callable[[Sequence[dict[str, Any]]], str | None]
"""The text of a conversation; None where the template fails on it or refuses it."""


@dataclass(frozen=True)
class Conventions:
    """The form of messages that a template wants.

    parts: roles whose content is a list of parts. null_content: an assistant's content is None beside calls where there
    is no text. text_arguments: a call's arguments are JSON text.
    """

    parts: frozenset[str] = frozenset()
    null_content: bool = False
    text_arguments: bool = False

    def content(self, role: str, texts: Sequence[str], *, has_calls: bool) -> Any:
        """Returns a message's content. texts: its parts, or the one text that they are joined to."""
        if has_calls and self.null_content and not any(texts):
            return None
        if role in self.parts:
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)

    def arguments(self, text: str) -> Any:
        """Returns a call's arguments. text: as JSON; what is no JSON stays text."""
        if self.text_arguments:
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


def conventions_of(render: Render) -> Conventions:
    """Returns the form of messages that a template shows best."""
    # A user's message first: the others are tried beside one, which must have the form that it is shown in.
    users = Conventions(frozenset({"user"} if _wants_parts(render, "user", Conventions()) else ()))
    parts = users.parts | {role for role in ("system", "assistant", "tool") if _wants_parts(render, role, users)}
    # The first form that shows all of a call; else one that shows the name.
    forms = [
        Conventions(parts, null, text) for null, text in ((False, False), (False, True), (True, False), (True, True))
    ]
    shown = (form for word in (_VALUE, _WORD) for form in forms if _shows_call(render, form, word))
    form = next(shown, forms[0])
    return replace(form, text_arguments=True) if _as_python(render, form) else form


def _wants_parts(render: Render, role: str, users: Conventions) -> bool:
    """Whether the template shows a message of this role only where its content is a list of parts."""
    as_text, as_parts = (render(_with(role, content, users)) for content in (_WORD, [{"type": "text", "text": _WORD}]))
    # A list that is printed as Python writes it is not shown.
    return _WORD not in (as_text or "") and _WORD in (as_parts or "") and "'type'" not in (as_parts or "")


def _with(role: str, content: Any, users: Conventions) -> list[dict[str, Any]]:
    """Returns a conversation with such a message in its place. users: the form of a user's messages."""
    message, asked = {"role": role, "content": content}, _asked(users)
    match role:
        case "system":
            return [message, asked]
        case "user":
            return [message]
        case "assistant":
            return [asked, message, asked]
    return [asked, *_called(Conventions())[:1], {**message, "name": _WORD, "tool_call_id": "call00001"}]


def _asked(conventions: Conventions) -> dict[str, Any]:
    return {"role": "user", "content": conventions.content("user", ("?",), has_calls=False)}


def _called(conventions: Conventions) -> list[dict[str, Any]]:
    arguments = conventions.arguments(json.dumps({_KEY: _VALUE}))
    call = {"id": "call00001", "type": "function", "function": {"name": _WORD, "arguments": arguments}}
    content = conventions.content("assistant", ("",), has_calls=True)
    answer = conventions.content("tool", ("!",), has_calls=False)
    return [
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": answer, "name": _WORD, "tool_call_id": "call00001"},
    ]


def _shows_call(render: Render, conventions: Conventions, word: str) -> bool:
    return word in (render([_asked(conventions), *_called(conventions)[:1]]) or "")


def _as_python(render: Render, conventions: Conventions) -> bool:
    """Whether the template prints an object as Python writes it, which no model was trained on."""
    return f"{{'{_KEY}'" in (render([_asked(conventions), *_called(conventions)[:1]]) or "")
