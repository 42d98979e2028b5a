"""Scores that users give to answers: which expert each score belongs to, and each model's sum of scores. PURE.

Only the latest requests can be scored, because the experts that answered them are remembered in memory alone. The
scores themselves are kept by `moe2.coordinator.gate.feedback_file`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from moe2.common.errors import Moe2Error

MAX_REQUESTS = 10_000
"""Most answered requests that are remembered for scoring; the oldest is forgotten first."""


class UnknownRequestError(Moe2Error):
    """No answered request with this id is remembered."""


class AlreadyScoredError(Moe2Error):
    """The request was scored before."""


class Feedback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One user's score of one answer, as the feedback file keeps it."""

    request_id: str
    expert: str
    """Key of the expert that answered."""
    model: str
    """Name of the expert's model."""
    score: float
    """From 0 for a bad answer to 1 for a good one."""
    prompt_sha256: str
    """Hash of the prompt as the gate reads it."""
    at_unix_s: float
    """When the score was given."""
    prompt: str | None = None
    """The prompt itself; None unless `[selection] keep_prompts` is set."""
    file_sha256: str | None = None
    """Checksum of the model's file, under whatever name it was served; None where it was not known, or not kept yet."""


@dataclass(frozen=True)
class Tally:
    """The sum and the number of one model's scores."""

    total: float = 0.0
    count: int = 0

    def plus(self, score: float) -> Tally:
        """The tally with one more score."""
        return Tally(self.total + score, self.count + 1)


class _Answered(msgspec.Struct):
    """An answered request that can be scored."""

    expert: str
    model: str
    prompt_sha256: str
    prompt: str | None
    key_id: str | None
    file_sha256: str | None = None
    scored: bool = False


class FeedbackBook:
    """Remembers which experts answered the latest requests, and sums up each model's scores.

    known: scores of the feedback file. keep_prompts: True to keep prompts with their scores.
    """

    def __init__(self, known: Iterable[Feedback] = (), *, keep_prompts: bool = False) -> None:
        self.keep_prompts = keep_prompts
        self._latest: OrderedDict[str, _Answered] = OrderedDict()
        self.tallies: dict[str, Tally] = {}
        """By the checksum of the model's file, or by its name where a score has no checksum."""
        for feedback in known:
            self._count(feedback)

    def answered(
        self,
        request_id: str,
        *,
        expert: str,
        model: str,
        prompt: str,
        key_id: str | None = None,
        file_sha256: str | None = None,
    ) -> None:
        """Remember which expert answered a request.

        prompt: as the gate reads it. key_id: id of the API key that asked; None where none was needed. file_sha256: of
        the model's file, where it is known.
        """
        digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        kept = prompt if self.keep_prompts else None
        self._latest[request_id] = _Answered(expert, model, digest, kept, key_id, file_sha256)
        if len(self._latest) > MAX_REQUESTS:
            self._latest.popitem(last=False)

    def feedback(self, request_id: str, score: float, at_unix_s: float, *, key_id: str | None = None) -> Feedback:
        """The feedback record of a score; the score counts only once the record is passed to `accept`.

        key_id: id of the API key that scores. It can score its own requests only: what another key asked is private,
        and scores move the gate for everybody. Raises UnknownRequestError and AlreadyScoredError.
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
            file_sha256=answered.file_sha256,
        )

    def completed(self, feedback: Feedback) -> Feedback | None:
        """Returns a score that another coordinator took with what is remembered here of its prompt; None if nothing is.

        Whoever gave the answer keeps the score in its file, where training reads it.
        """
        answered = self._latest.get(feedback.request_id)
        if answered is None or answered.scored:
            return None
        return replace(
            feedback,
            prompt_sha256=answered.prompt_sha256,
            prompt=answered.prompt,
            file_sha256=answered.file_sha256,
        )

    def accept(self, feedback: Feedback) -> Tally:
        """Count a score, and return its model's new tally."""
        if answered := self._latest.get(feedback.request_id):
            answered.scored = True
        return self._count(feedback)

    def _count(self, feedback: Feedback) -> Tally:
        model = feedback.file_sha256 or feedback.model
        tally = self.tallies[model] = self.tallies.get(model, Tally()).plus(feedback.score)
        return tally
