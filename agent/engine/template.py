"""Chat templates: a conversation to the text the model was trained on, by the Jinja template its GGUF carries.

Templates come from strangers' files, so they run in Jinja's sandbox.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from moe2.common.errors import Moe2Error
from moe2.common.messages import ChatMessage


class TemplateError(Moe2Error):
    """The model's chat template is missing, invalid, or refuses this conversation."""


class ChatTemplate:
    """One model's chat template, compiled once. Raises `TemplateError` where the template itself is invalid."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"The model's chat template is invalid: {error}.",
                remedy="Use a GGUF file with a valid template, or send plain completions.",
            ) from error
        self._constants = {"bos_token": bos, "eos_token": eos}

    def render(self, messages: tuple[ChatMessage, ...]) -> str:
        """The conversation as text, ending where the assistant's answer begins."""
        variables: dict[str, Any] = {
            **self._constants,
            "messages": [_message(message) for message in messages],
            "add_generation_prompt": True,
        }
        try:
            return self._template.render(variables)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"The model's chat template refuses this conversation: {error}.",
                remedy="Check the roles and their order.",
            ) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise TemplateError(
                f"The model's chat template failed on this conversation: {type(error).__name__}: {error}.",
                remedy="Check the roles and their order.",
            ) from error


def _message(message: ChatMessage) -> dict[str, str]:
    content = {"role": message.role, "content": message.content}
    return content if message.name is None else {**content, "name": message.name}


def _refuse(reason: str) -> NoReturn:
    """The `raise_exception` that templates call to refuse a conversation."""
    raise jinja2.TemplateError(reason)
