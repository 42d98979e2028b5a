"""Scores that users give to answers: which expert they belong to, and what they add up to. PURE.

Only the latest requests can be scored: their experts are remembered in memory. What was scored is kept by
`moe2.coordinator.gate.feedback_file`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from moe2.common.errors import Moe2Error

MAX_REQUESTS = 10_000
"""Answered requests that can be scored; the oldest is forgotten first."""


class UnknownRequestError(Moe2Error):
    """No answered request of that id is remembered."""


class AlreadyScoredError(Moe2Error):
    """The request has its score."""


class Feedback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One score, as it is kept.

    score: 0..1. prompt_sha256: of the prompt as the gate reads it. prompt: itself, only where `[selection]
    keep_prompts` is set.
    """

    request_id: str
    expert: str
    model: str
    score: float
    prompt_sha256: str
    at_unix_s: float
    prompt: str | None = None


@dataclass(frozen=True)
class Tally:
    """Scores of one model."""

    total: float = 0.0
    count: int = 0

    def plus(self, score: float) -> Tally:
        """With one score more."""
        return Tally(self.total + score, self.count + 1)


@dataclass
class _Answered:
    expert: str
    model: str
    prompt_sha256: str
    prompt: str | None
    key_id: str | None
    scored: bool = False


class FeedbackBook:
    """Who answered the latest requests, and each model's scores. keep_prompts: also what was asked."""

    def __init__(self, known: Iterable[Feedback] = (), *, keep_prompts: bool = False) -> None:
        self.keep_prompts = keep_prompts
        self._latest: OrderedDict[str, _Answered] = OrderedDict()
        self.tallies: dict[str, Tally] = {}
        for feedback in known:
            self._count(feedback)

    def answered(self, request_id: str, *, expert: str, model: str, prompt: str, key_id: str | None = None) -> None:
        """Remember who answered a request. key_id: of the API key that asked, None where none was needed."""
        digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        self._latest[request_id] = _Answered(expert, model, digest, prompt if self.keep_prompts else None, key_id)
        if len(self._latest) > MAX_REQUESTS:
            self._latest.popitem(last=False)

    def feedback(self, request_id: str, score: float, at_unix_s: float, *, key_id: str | None = None) -> Feedback:
        """The score as it is to be kept. Counts only once it is passed to `accept`.

        key_id: of the API key that scores. Another key's request is unknown to it: what it asked is nobody else's
        business, and its scores move everybody's gate. Raises UnknownRequestError and AlreadyScoredError.
        """
        answered = self._latest.get(request_id)
        if answered is None or answered.key_id != key_id:
            raise UnknownRequestError(
                f"No answered request {request_id!r} is remembered.",
                remedy=f"Score one of the latest {MAX_REQUESTS} answers, before the coordinator restarts.",
            )
        if answered.scored:
            raise AlreadyScoredError(f"Request {request_id!r} has been scored already.")
        return Feedback(
            request_id=request_id,
            expert=answered.expert,
            model=answered.model,
            score=score,
            prompt_sha256=answered.prompt_sha256,
            at_unix_s=at_unix_s,
            prompt=answered.prompt,
        )

    def accept(self, feedback: Feedback) -> Tally:
        """Count a score; returns its model's tally."""
        if answered := self._latest.get(feedback.request_id):
            answered.scored = True
        return self._count(feedback)

    def _count(self, feedback: Feedback) -> Tally:
        tally = self.tallies[feedback.model] = self.tallies.get(feedback.model, Tally()).plus(feedback.score)
        return tally
