"""Checks a job's request and turns its prompt into tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from moe2.agent.engine.prompt.quotation import Quotation, Segment
from moe2.agent.engine.prompt.template import ChatTemplate, Rendered, TemplateError
from moe2.agent.engine.prompt.thinking import Marks
from moe2.agent.engine.protocol import JobFailed
from moe2.common.errors import JobErrorCode, Moe2Error
from moe2.common.link.messages import EmbedJob, FollowJob, ScoreJob, Submit
from moe2.common.link.prompts import ChatPrompt, TextPrompt

MAX_TOKEN_BYTES = 1024
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


def failed(job_id: str, error: Exception) -> JobFailed:
    """Returns what is said of a job that could not be prepared. An error that nobody thought of is told as one."""
    if isinstance(error, RequestError):
        return JobFailed(job_id=job_id, code=error.code, message=str(error), prompt_tokens=error.prompt_tokens)
    if isinstance(error, Moe2Error):
        return JobFailed(job_id=job_id, code=JobErrorCode.INVALID_REQUEST, message=str(error))
    message = f"The request could not be prepared: {type(error).__name__}: {error}. The agent's log has more."
    return JobFailed(job_id=job_id, code=JobErrorCode.INTERNAL, message=message)


class Vocabulary(Protocol):
    """What a model's vocabulary can do."""

    @property
    def bos(self) -> str: ...
    @property
    def control_texts(self) -> tuple[str, ...]: ...
    @property
    def infill_marks(self) -> tuple[int, int, int] | None: ...
    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def special_text(self, token: int) -> str: ...
    def is_end(self, token: int) -> bool: ...


@dataclass(frozen=True)
class Opened:
    """A prompt whose answer is open. tokens: at least one. begun: what it has of the answer already (see
    `drawing.Reasoning`)."""

    tokens: list[int]
    begun: str = ""


class RequestReader:
    """Reads requests for one model. Every method raises `RequestError` for what cannot be run."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate | None,
        *,
        vocabulary_size: int,
        tool_template: ChatTemplate | None = None,
        marks: Marks | None = None,
    ) -> None:
        """tool_template: for conversations with tools, where the model has one of its own. marks: of its reasoning."""
        self.vocabulary = vocabulary
        self._template = template
        self._tool_template = tool_template or template
        self._vocabulary_size = vocabulary_size
        self._quotation = Quotation(vocabulary.control_texts)
        self._marks = marks

    def opened(self, request: Submit, *, limit: int) -> Opened:
        """The prompt, with its answer open: fewer than `limit` tokens."""
        if sum((request.grammar is not None, request.json_schema is not None, bool(request.forced_tools))) > 1:
            raise invalid("More than one of grammar, JSON schema and forced tools is given.", "Send one of them.")
        if not all(request.stop):
            raise invalid("A stop string is empty: leave it out.")
        if isinstance(request.prompt, TextPrompt) and (request.prompt.tokens or request.prompt.suffix):
            return Opened(self._composed(request.prompt, request.prefix, limit), request.prefix)
        read = self._read(request.prompt, may_think=request.thinking_budget_tokens != 0)
        segments, begun = read.segments, read.begun
        if request.prefix and (words := self._words_before_answer(begun)) and not self._has_mark(request.prefix):
            # The client has the answer's beginning: what was to be thought is over.
            segments, begun = _joined(segments, (Segment(words),)), begun + words
        prompt = self._tokens(segments, limit=limit)
        if not request.prefix:
            return Opened(prompt, begun)
        tokens = prompt + self._continuation(segments, prompt, request.prefix)
        check_room(len(tokens), 1, limit=limit)
        return Opened(tokens, begun + request.prefix)

    def score(self, request: ScoreJob, *, limit: int) -> tuple[list[int], list[list[int]]]:
        """(the prompt's tokens, each continuation's tokens)."""
        if not request.continuations:
            raise invalid("There is no continuation to score.", "Send at least one.")
        segments = self._unthinking(request.prompt)
        prompt = self._tokens(segments, limit=limit)
        continuations = [self._continuation(segments, prompt, each) for each in request.continuations]
        longest = max(map(len, continuations))
        check_room(len(prompt), longest, limit=limit)
        return prompt, continuations

    def embed(self, request: EmbedJob, *, limit: int) -> list[list[int]]:
        """The tokens of each text, at most `limit`. A text is data: what looks like a control token in it is none."""
        if not request.texts:
            raise invalid("There is no text to embed.", "Send at least one.")
        return [self._text_tokens(text, f"Text {number}", limit) for number, text in enumerate(request.texts)]

    def _text_tokens(self, text: TextPrompt, name: str, limit: int) -> list[int]:
        tokens = list(text.tokens)
        if unknown := [token for token in tokens if not self.knows_token(token)]:
            raise invalid(f"{name} has the token {unknown[0]}, which is not in this model's vocabulary.")
        size = _checked_bytes(text.text)
        if size <= limit * MAX_TOKEN_BYTES:
            tokens = tokens or self.vocabulary.tokenize(text.text, add_special=True, parse_special=False)
        if size > limit * MAX_TOKEN_BYTES or len(tokens) > limit:
            length = f"{len(tokens)} tokens" if tokens else f"{size} bytes"
            raise RequestError(
                f"{name} has {length}, and this model reads {limit} tokens at once.",
                code=JobErrorCode.CONTEXT_EXCEEDED,
                remedy="Cut it into shorter texts.",
            )
        if not tokens:
            raise invalid(f"{name} is empty.", "Send at least one character.")
        return tokens

    def follow(self, request: FollowJob, *, limit: int) -> list[int]:
        """The tokens of the prompt that a `FollowJob` goes on from."""
        return self._tokens(self._unthinking(request.prompt), limit=limit)

    def knows_token(self, token: int) -> bool:
        """True if the model's vocabulary has it."""
        return 0 <= token < self._vocabulary_size

    def _unthinking(self, prompt: ChatPrompt | TextPrompt) -> tuple[Segment, ...]:
        """A prompt after which the answer itself comes: what several experts write together has no reasoning."""
        read = self._read(prompt, may_think=False)
        words = self._words_before_answer(read.begun) if isinstance(prompt, ChatPrompt) else ""
        return _joined(read.segments, (Segment(words),)) if words else read.segments

    def _words_before_answer(self, begun: str) -> str:
        """What has to be written after a prompt, so that the answer itself comes next."""
        if self._marks is None:
            return ""
        return self._marks.closing_text if self._marks.reader(begun).is_reasoning else self._marks.answer_text

    def _has_mark(self, text: str) -> bool:
        return self._marks is not None and (self._marks.opening in text or self._marks.closing in text)

    def _read(self, prompt: ChatPrompt | TextPrompt, *, may_think: bool = True) -> Rendered:
        if isinstance(prompt, TextPrompt):
            # Who sends plain text is its own template: control tokens in it are meant.
            return Rendered((Segment(prompt.text),))
        uses_tools = prompt.tools or any(message.tool_calls or message.role == "tool" for message in prompt.messages)
        template = self._tool_template if uses_tools else self._template
        if template is None:
            raise invalid(
                "This model has no usable chat template, so it cannot hold a conversation.",
                "Use /v1/completions, or a GGUF file with a chat template.",
            )
        if not prompt.messages:
            raise invalid("The conversation has no messages.", "Send at least one.")
        variables = _variables(prompt.template_kwargs)
        may_think = may_think and variables.get("enable_thinking") is not False
        try:
            return template.rendered(prompt.messages, prompt.tools, variables, may_think=may_think)
        except TemplateError as error:
            raise invalid(error.message, error.remedy) from error

    def _tokens(self, segments: tuple[Segment, ...], *, limit: int) -> list[int]:
        _check_size((segment.text for segment in segments), limit)
        tokens = self._tokenize(segments)
        if not tokens:
            raise invalid("The prompt is empty.", "Send at least one character.")
        return _with_room(tokens, limit)

    def _composed(self, prompt: TextPrompt, prefix: str, limit: int) -> list[int]:
        """The tokens of a prompt that is given as such, or has a gap: what is before it, what is after it, and what it
        begins with, in the order in which models learn to fill it. Texts are data: what looks like a control token in
        them is none. Nothing is added to given tokens: whoever has them knows what they mean."""
        if unknown := [token for token in prompt.tokens if not self.knows_token(token)]:
            raise invalid(f"The prompt has the token {unknown[0]}, which is not in this model's vocabulary.")
        texts = (prompt.text, prompt.suffix, prefix)
        _check_size(texts, limit)
        before, after, begun = map(self._data, texts)
        before = list(prompt.tokens) or before
        if not prompt.suffix:
            return _with_room([*before, *begun], limit)
        marks = self.vocabulary.infill_marks
        if marks is None:
            raise invalid(
                "This model cannot fill a gap between two texts: its vocabulary has no marks for one.",
                "Leave 'suffix' out, or use a model for code that can.",
            )
        start = self.vocabulary.tokenize("", add_special=True, parse_special=False)
        return _with_room([*start, marks[0], *before, marks[1], *after, marks[2], *begun], limit)

    def _continuation(self, segments: tuple[Segment, ...], prompt: list[int], continuation: str) -> list[int]:
        """A continuation's tokens: as they are in the joint text where the prompt's own tokens stay what they are, else
        of the continuation by itself (where a token would straddle the border)."""
        _checked_bytes(continuation)
        following = self._quotation.segments(self._quotation.quote(continuation))
        joint = self._tokenize(_joined(segments, following))
        if joint[: len(prompt)] == prompt and len(joint) > len(prompt):
            return joint[len(prompt) :]
        tokens = self._data(continuation)
        if not tokens:
            raise invalid("A continuation is empty.", "Send at least one character.")
        return tokens

    def _data(self, text: str) -> list[int]:
        """The tokens of a text within others, none of which is a control token."""
        return self.vocabulary.tokenize(text, add_special=False, parse_special=False)

    def _tokenize(self, segments: tuple[Segment, ...]) -> list[int]:
        # A template that writes the BOS token itself must not get a second one.
        bos = self.vocabulary.bos
        first = segments[0]
        begins = bool(bos) and not first.quoted and first.text.startswith(bos)
        tokens = self.vocabulary.tokenize(first.text, add_special=not begins, parse_special=not first.quoted)
        for text, quoted in segments[1:]:
            tokens += self.vocabulary.tokenize(text, add_special=False, parse_special=not quoted)
        return tokens


def _variables(text: str) -> dict[str, Any]:
    try:
        variables = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid("The template's variables are not valid JSON.") from error
    if not isinstance(variables, dict):
        raise invalid("The template's variables are not a JSON object.")
    return variables


def _joined(before: tuple[Segment, ...], after: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """One text after another: where plain text meets plain text, tokens may span the border."""
    last, first = before[-1], after[0]
    if last.quoted or first.quoted:
        return before + after
    return (*before[:-1], Segment(last.text + first.text), *after[1:])


def _with_room(tokens: list[int], limit: int) -> list[int]:
    """A prompt's tokens, which leave room for one token at least. Raises `RequestError` where they do not."""
    if len(tokens) >= limit:
        raise RequestError(
            f"The prompt has {len(tokens)} tokens, and the context has {limit} for prompt and answer together.",
            code=JobErrorCode.CONTEXT_EXCEEDED,
            remedy="Shorten it, or use an expert with a larger context.",
            prompt_tokens=len(tokens),
        )
    return tokens


def check_room(prompt: int, following: int, *, limit: int) -> None:
    """Raises `RequestError` where a prompt and the tokens that are to follow it cannot fit."""
    if prompt + following > limit:
        raise RequestError(
            f"The prompt has {prompt} tokens and {following} are to follow: {prompt + following} together, "
            f"but the context has {limit}.",
            code=JobErrorCode.CONTEXT_EXCEEDED,
            remedy="Shorten it, or use an expert with a larger context.",
            prompt_tokens=prompt,
        )


def invalid(message: str, remedy: str | None = None) -> RequestError:
    return RequestError(message, code=JobErrorCode.INVALID_REQUEST, remedy=remedy)


def _check_size(texts: Iterable[str], limit: int) -> None:
    """Raises `RequestError` for texts that no tokenizer should see, and for more of them than can fit."""
    size = sum(map(_checked_bytes, texts))
    if size > limit * MAX_TOKEN_BYTES:
        raise RequestError(
            f"A prompt of {size} bytes cannot fit a context of {limit} tokens.",
            code=JobErrorCode.CONTEXT_EXCEEDED,
            remedy="Shorten it, or use an expert with a larger context.",
        )


def _checked_bytes(text: str) -> int:
    """The text's size in UTF-8. Raises `RequestError` for what no tokenizer should see."""
    if "\0" in text:
        raise invalid(f"The text contains a NUL character (character {text.index(chr(0))}).", "Remove it.")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise invalid(f"The text is not valid Unicode: {error.reason}.", "Send valid UTF-8.") from error
