"""PURE: checks a job's request and turns its prompt into tokens."""

from __future__ import annotations

from typing import Protocol

from moe2.agent.engine.protocol import Generate
from moe2.agent.engine.template import ChatTemplate, TemplateError
from moe2.common.errors import JobErrorCode, Moe2Error
from moe2.common.messages import ChatPrompt, TextPrompt

MAX_ALTERNATIVES = 20
LONGEST_TOKEN_BYTES = 1024
"""No vocabulary we know has a longer token: a prompt of more bytes than this times the context cannot fit, and need not
be tokenized to know it."""


class RequestError(Moe2Error):
    """A request that cannot be run. `code` tells why, `prompt_tokens` how long the prompt is where that is known."""

    def __init__(
        self, message: str, *, code: JobErrorCode, remedy: str | None = None, prompt_tokens: int | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code
        self.prompt_tokens = prompt_tokens


class Vocabulary(Protocol):
    """What a model's vocabulary can do."""

    @property
    def bos(self) -> str: ...
    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...


def check_generate(request: Generate) -> None:
    """Raises `RequestError` for what is wrong with the request whatever the model."""
    if request.max_tokens is not None and request.max_tokens < 1:
        raise invalid(f"max_tokens is {request.max_tokens}, but must be at least 1.")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_ALTERNATIVES:
        raise invalid(f"logprobs is {request.logprobs}, but must be between 0 and {MAX_ALTERNATIVES}.")
    if not all(request.stop):
        raise invalid("A stop string is empty: leave it out.")


def prompt_tokens(
    prompt: ChatPrompt | TextPrompt, vocabulary: Vocabulary, template: ChatTemplate | None, *, limit: int
) -> list[int]:
    """The prompt as tokens, at least one and at most `limit`. Raises `RequestError`."""
    text = _text(prompt, template)
    if "\0" in text:
        raise invalid(f"The prompt contains a NUL character (character {text.index(chr(0))}).", "Remove it.")
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"The prompt is not valid Unicode: {error.reason}.", "Send valid UTF-8.") from error
    if len(content) > limit * LONGEST_TOKEN_BYTES:
        raise RequestError(
            f"A prompt of {len(content)} bytes cannot fit a context of {limit} tokens.",
            code=JobErrorCode.CONTEXT_EXCEEDED,
            remedy="Shorten it, or use an expert with a larger context.",
        )
    bos = vocabulary.bos
    begins = bool(bos) and text.startswith(bos)
    tokens = vocabulary.tokenize(text, add_special=not begins, parse_special=True)
    if not tokens:
        raise invalid("The prompt is empty.", "Send at least one character.")
    if len(tokens) >= limit:
        raise RequestError(
            f"The prompt has {len(tokens)} tokens, and the context has {limit} for prompt and answer together.",
            code=JobErrorCode.CONTEXT_EXCEEDED,
            remedy="Shorten it, or use an expert with a larger context.",
            prompt_tokens=len(tokens),
        )
    return tokens


def check_room(prompt: int, max_tokens: int | None, *, limit: int) -> None:
    """Raises `RequestError` where prompt and `max_tokens` together cannot fit."""
    if max_tokens is not None and prompt + max_tokens > limit:
        raise RequestError(
            f"The prompt has {prompt} tokens and max_tokens is {max_tokens}: {prompt + max_tokens} together, "
            f"but the context has {limit}.",
            code=JobErrorCode.CONTEXT_EXCEEDED,
            remedy=f"Ask for at most {limit - prompt} tokens, leave max_tokens out, or shorten the prompt.",
            prompt_tokens=prompt,
        )


def invalid(message: str, remedy: str | None = None) -> RequestError:
    return RequestError(message, code=JobErrorCode.INVALID_REQUEST, remedy=remedy)


def _text(prompt: ChatPrompt | TextPrompt, template: ChatTemplate | None) -> str:
    if isinstance(prompt, TextPrompt):
        return prompt.text
    if template is None:
        raise invalid(
            "This model has no usable chat template, so it cannot hold a conversation.",
            "Use /v1/completions, or a GGUF file with a chat template.",
        )
    if not prompt.messages:
        raise invalid("The conversation has no messages.", "Send at least one.")
    try:
        return template.render(prompt.messages)
    except TemplateError as error:
        raise invalid(error.message, error.remedy) from error
