"""From a request to the job that will run it, or the reason why none can. No llama.cpp, no clock, no pipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from moe2.agent.engine.calls.forms import Caller, Style
from moe2.agent.engine.calls.translator import CallTranslator
from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome, Lanes
from moe2.agent.engine.decoding.counting import Counting
from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.drawing import BoundDraw, Calling, Draw, Drawing, Reasoning
from moe2.agent.engine.decoding.echoing import Echoing
from moe2.agent.engine.decoding.following import Following
from moe2.agent.engine.decoding.job import Job
from moe2.agent.engine.decoding.likelihood import Scoring
from moe2.agent.engine.decoding.shelf import State
from moe2.agent.engine.decoding.writing import Means
from moe2.agent.engine.prompt.request import RequestError, RequestReader
from moe2.agent.engine.prompt.thinking import Thinker
from moe2.agent.engine.protocol import Job as JobRequest
from moe2.agent.engine.speculation.speculation import Speculation
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import EmbedJob, FollowJob, ScoreJob, Submit
from moe2.common.link.prompts import ChatPrompt, TextPrompt

_MIN_PREDICTED_TOKENS = 64
"""An answer of unknown length is taken to be at least this long when cells are reserved for it."""


class Cache(Protocol):
    """The model and its key/value cache (see `context.Context`)."""

    def decode(self, chunks: Sequence[Chunk]) -> DecodeOutcome: ...
    def logits(self, place: int) -> Logits: ...
    def copy(self, source: int, target: int, tokens: int) -> None: ...
    def trim(self, lane: int, keep: int) -> bool: ...
    def state_bytes(self, lane: int) -> int: ...
    def save(self, lane: int) -> State: ...
    def restore(self, lane: int, state: State) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one engine's work.

    slots: jobs at once. context_tokens: cells of the cache. idle_tokens: cached ones that may stay when no job runs.
    job_tokens: prompt and answer of one job together. batch_tokens, outputs: tokens, and rows of logits, of one batch.
    """

    slots: int
    context_tokens: int
    idle_tokens: int
    job_tokens: int
    batch_tokens: int
    outputs: int


class Intake:
    """Makes the jobs of one model from the requests that come through the pipe."""

    def __init__(
        self,
        *,
        reader: RequestReader,
        cache: Cache,
        lanes: Lanes,
        new_draw: Callable[[Submit], Draw],
        limits: Limits,
        thinker: Thinker | None = None,
        caller: Caller | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """new_draw: raises `Moe2Error` for sampling parameters or a grammar that make no sense. thinker: None for a
        model without reasoning. caller: how the model writes calls; None where it is read as it stands. speculation:
        None where nothing is guessed."""
        self._reader = reader
        self._cache = cache
        self._means = Means(reader.vocabulary, cache.logits, lanes, limits.job_tokens, speculation)
        self._new_draw = new_draw
        self._limits = limits
        self._thinker = thinker
        self._caller = caller

    def knows_token(self, token: int) -> bool:
        """True if the model's vocabulary has it."""
        return self._reader.knows_token(token)

    def job(self, request: JobRequest, now_s: float) -> Job:
        """A job that is queued from now on. Raises `Moe2Error` where the request cannot be run."""
        match request:
            case ScoreJob():
                return self._scoring(request, now_s)
            case EmbedJob():
                raise RequestError(
                    "This model writes text and yields no vectors.",
                    code=JobErrorCode.UNKNOWN_EXPERT,
                    remedy="Use an embedding model.",
                )
            case FollowJob():
                prompt = self._reader.follow(request, limit=self._limits.job_tokens)
                cells = self._predicted_cells(len(prompt), request.max_tokens)
                return Following(request, prompt, self._means, cells=cells, queued_at_s=now_s)
            case Submit():
                return self._writing(request, now_s)

    def _writing(self, request: Submit, now_s: float) -> Job:
        opened = self._reader.opened(request, limit=self._limits.job_tokens)
        if request.only_counts:
            return Counting(request, opened.tokens, queued_at_s=now_s)
        cells = self._predicted_cells(len(opened.tokens), request.max_tokens)
        draw = self._new_draw(request)
        if request.echo:
            return Echoing(request, opened.tokens, self._means, cells=cells, queued_at_s=now_s, draw=draw)
        reasoning = None
        if self._thinker is not None and isinstance(request.prompt, ChatPrompt):
            bound = draw if isinstance(draw, BoundDraw) else None
            reasoning = Reasoning(self._thinker, opened.begun, bound, request.thinking_budget_tokens)
        return Drawing(
            request,
            opened.tokens,
            self._means,
            cells=cells,
            queued_at_s=now_s,
            draw=draw,
            reasoning=reasoning,
            calling=self._calling(request.prompt),
        )

    def _calling(self, prompt: ChatPrompt | TextPrompt) -> Calling | None:
        """What reads the calls of an answer to this prompt; None where they need no reading."""
        caller = self._caller
        if caller is None or not isinstance(prompt, ChatPrompt) or caller.is_read_as_it_stands:
            return None
        if not prompt.tools and caller.form.style is not Style.RECIPIENTS:
            return None
        return Calling(CallTranslator(caller.form, prompt.tools), caller.spelled())

    def _scoring(self, request: ScoreJob, now_s: float) -> Scoring:
        prompt, continuations = self._reader.score(request, limit=self._limits.job_tokens)
        scoring = Scoring(request, prompt, continuations, queued_at_s=now_s, logits=self._cache.logits)
        if scoring.cells > self._limits.context_tokens:
            raise RequestError(
                f"Prompt and continuations have {scoring.cells} tokens, and the context has "
                f"{self._limits.context_tokens}.",
                code=JobErrorCode.CONTEXT_EXCEEDED,
                remedy="Score fewer continuations at a time, or shorten them.",
                prompt_tokens=len(prompt),
            )
        return scoring

    def _predicted_cells(self, prompt: int, max_tokens: int | None) -> int:
        """Cells to reserve. A limit beyond what the context leaves limits nothing: the context ends the answer."""
        if max_tokens is not None and prompt + max_tokens <= self._limits.job_tokens:
            return prompt + max_tokens
        fair = self._limits.context_tokens // self._limits.slots
        return min(max(fair, prompt + _MIN_PREDICTED_TOKENS), self._limits.job_tokens)
