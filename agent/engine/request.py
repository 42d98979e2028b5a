"""Checks a job's request and turns its prompt into tokens."""

from __future__ import annotations

from typing import Protocol

from moe2.agent.engine.protocol import Embed, Follow, Generate, Score
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


class RequestReader:
    """Reads requests for one model. Every method raises `RequestError` for what cannot be run."""

    def __init__(self, vocabulary: Vocabulary, template: ChatTemplate | None, *, vocabulary_size: int) -> None:
        self.vocabulary = vocabulary
        self._template = template
        self._vocabulary_size = vocabulary_size

    def generate(self, request: Generate, *, limit: int) -> list[int]:
        """The prompt's tokens, at least one and fewer than `limit`."""
        if request.max_tokens is not None and request.max_tokens < 1:
            raise invalid(f"max_tokens is {request.max_tokens}, but must be at least 1.")
        if request.logprobs is not None and not 0 <= request.logprobs <= MAX_ALTERNATIVES:
            raise invalid(f"logprobs is {request.logprobs}, but must be between 0 and {MAX_ALTERNATIVES}.")
        if sum((request.grammar is not None, request.json_schema is not None, bool(request.forced_tools))) > 1:
            raise invalid("More than one of grammar, JSON schema and forced tools is given.", "Send one of them.")
        if not all(request.stop):
            raise invalid("A stop string is empty: leave it out.")
        text = self._text(request.prompt)
        prompt = self._tokens(text, limit=limit)
        if not request.prefix:
            return prompt
        begun = prompt + self._continuation(text, prompt, request.prefix)
        check_room(len(begun), 1, limit=limit)
        return begun

    def score(self, request: Score, *, limit: int) -> tuple[list[int], list[list[int]]]:
        """(the prompt's tokens, each continuation's tokens)."""
        if not request.continuations:
            raise invalid("There is no continuation to score.", "Send at least one.")
        text = self._text(request.prompt)
        prompt = self._tokens(text, limit=limit)
        continuations = [self._continuation(text, prompt, each) for each in request.continuations]
        longest = max(map(len, continuations))
        check_room(len(prompt), longest, limit=limit)
        return prompt, continuations

    def embed(self, request: Embed, *, limit: int) -> list[int]:
        """The tokens of the text."""
        return self._tokens(self._text(request.prompt), limit=limit)

    def follow(self, request: Follow, *, limit: int) -> list[int]:
        """The prompt's tokens."""
        if request.most < 1:
            raise invalid(f"most is {request.most}, but must be at least 1.")
        if not 0 < request.top_p <= 1:
            raise invalid(f"top_p is {request.top_p}, but must be above 0 and at most 1.")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise invalid(f"max_tokens is {request.max_tokens}, but must be at least 1.")
        return self._tokens(self._text(request.prompt), limit=limit)

    def knows_token(self, token: int) -> bool:
        """True if the model's vocabulary has it."""
        return 0 <= token < self._vocabulary_size

    def _text(self, prompt: ChatPrompt | TextPrompt) -> str:
        if isinstance(prompt, TextPrompt):
            return prompt.text
        if self._template is None:
            raise invalid(
                "This model has no usable chat template, so it cannot hold a conversation.",
                "Use /v1/completions, or a GGUF file with a chat template.",
            )
        if not prompt.messages:
            raise invalid("The conversation has no messages.", "Send at least one.")
        try:
            return self._template.render(prompt.messages, prompt.tools)
        except TemplateError as error:
            raise invalid(error.message, error.remedy) from error

    def _tokens(self, text: str, *, limit: int) -> list[int]:
        size = _checked_bytes(text)
        if size > limit * LONGEST_TOKEN_BYTES:
            raise RequestError(
                f"A prompt of {size} bytes cannot fit a context of {limit} tokens.",
                code=JobErrorCode.CONTEXT_EXCEEDED,
                remedy="Shorten it, or use an expert with a larger context.",
            )
        tokens = self._tokenize(text)
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

    def _continuation(self, text: str, prompt: list[int], continuation: str) -> list[int]:
        """A continuation's tokens: as they are in the joint text where the prompt's own tokens stay what they are, else
        of the continuation by itself (where a token would straddle the border)."""
        _checked_bytes(continuation)
        joint = self._tokenize(text + continuation)
        if joint[: len(prompt)] == prompt and len(joint) > len(prompt):
            return joint[len(prompt) :]
        tokens = self.vocabulary.tokenize(continuation, add_special=False, parse_special=False)
        if not tokens:
            raise invalid("A continuation is empty.", "Send at least one character.")
        return tokens

    def _tokenize(self, text: str) -> list[int]:
        # A template that writes the BOS token itself must not get a second one.
        bos = self.vocabulary.bos
        begins = bool(bos) and text.startswith(bos)
        return self.vocabulary.tokenize(text, add_special=not begins, parse_special=True)


def check_room(prompt: int, max_tokens: int | None, *, limit: int) -> None:
    """Raises `RequestError` where prompt and answer together cannot fit."""
    if max_tokens is not None and prompt + max_tokens > limit:
        raise RequestError(
            f"The prompt has {prompt} tokens and {max_tokens} are to follow: {prompt + max_tokens} together, "
            f"but the context has {limit}.",
            code=JobErrorCode.CONTEXT_EXCEEDED,
            remedy=f"Ask for at most {limit - prompt} tokens, leave max_tokens out, or shorten the prompt.",
            prompt_tokens=prompt,
        )


def invalid(message: str, remedy: str | None = None) -> RequestError:
    return RequestError(message, code=JobErrorCode.INVALID_REQUEST, remedy=remedy)


def _checked_bytes(text: str) -> int:
    """The text's size in UTF-8. Raises `RequestError` for what no tokenizer should see."""
    if "\0" in text:
        raise invalid(f"The text contains a NUL character (character {text.index(chr(0))}).", "Remove it.")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise invalid(f"The text is not valid Unicode: {error.reason}.", "Send valid UTF-8.") from error
