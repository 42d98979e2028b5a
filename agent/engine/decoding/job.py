"""What every kind of job has: its prompt, its phases, its end. No llama.cpp, no clock, no pipes.

The decoder runs a job's prompt and hands it what the model said; the job decides when it has ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from moe2.agent.engine.decoding.batch import Chunk, Run
from moe2.agent.engine.protocol import Event, Finished
from moe2.agent.engine.speculation.ngrams import Guess
from moe2.agent.engine.speculation.speculation import Speculator
from moe2.common.link.messages import TokenPiece


@dataclass(slots=True)
class Phases:
    """When a job entered each phase, on the decoder's clock; None is not yet."""

    queued_at_s: float
    started_at_s: float | None = None
    first_at_s: float | None = None

    def durations_s(self, now_s: float) -> tuple[float, float | None, float | None]:
        """(wait, prefill, decode) up to now; None for a phase never entered."""
        started_s, first_s = self.started_at_s, self.first_at_s
        return (
            (now_s if started_s is None else started_s) - self.queued_at_s,
            None if started_s is None else (now_s if first_s is None else first_s) - started_s,
            None if first_s is None else now_s - first_s,
        )


class Job(ABC):
    """A job: one request on its way through the engine. `reason` is set once it has ended."""

    reads_anew = False
    """Nothing of the prompt comes from the cache, and the answer does not depend on what else is in it."""

    def __init__(self, job_id: str, prompt: list[int], *, cells: int, queued_at_s: float) -> None:
        """`cells`: tokens of cache to reserve."""
        self.job_id = job_id
        self.prompt = prompt
        self.cells = cells
        self.logits_from = len(prompt) - 1
        self.phases = Phases(queued_at_s)
        self.unread_before = 0.0
        """Tokens of others' prompts that the batch in progress, as the job came, had still to read."""
        self.batch_wait_s = 0.0
        """For how long the job then lay unread."""
        self.trunk: Run | None = None
        self.cached_tokens = 0
        self.decoded_tokens = 0
        self.reasoning_tokens = 0
        self.drafted_tokens = 0
        """Guessed tokens that went through the model."""
        self.accepted_tokens = 0
        """Those of them that were right."""
        self.model_drafted_tokens = 0
        """Those of the guessed tokens that a draft model has guessed, not the text."""
        self.model_accepted_tokens = 0
        self.reason: str | None = None
        self.stop: str | None = None
        """The stop string that has ended the answer."""

    @property
    def is_ready(self) -> bool:
        """False while something outside the model still has to be known before the job can start."""
        return True

    @abstractmethod
    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        """A chunk of one of this job's runs went through the model; its first token was at `place` in the batch.

        Raises `RequestError` where the job cannot go on.
        """

    @property
    def speculator(self) -> Speculator | None:
        """What guesses the job's next tokens; None where it guesses none."""
        return None

    def guessable(self, most: int) -> int:
        """How many of `most` guesses the job's limits leave room for."""
        return 0

    def guess(self, most: int, patience_s: float = 0.0) -> Guess | None:
        """At most so many tokens that may come next, of which there is at least one; None where nothing suggests
        any. patience_s: how long it may wait for what it needs to know."""
        return None

    def expect(self, tokens: Sequence[int]) -> int:
        """Take in that these guesses, of which there is at least one, go into the next batch.

        Returns how many of them, from the first on, come whatever the model says before them.
        """
        return 0

    @abstractmethod
    def success(self, now_s: float) -> Event:
        """The event that reports what the job was run for."""

    def branches(self) -> list[list[int]]:
        """Token sequences to run next, each beginning with all of the trunk's."""
        return []

    def branched(self, run: Run) -> None:  # noqa: B027 - most jobs never branch
        """The first of `branches` has become `run`."""

    def pieces(self) -> list[TokenPiece]:
        """Text that became final since the last call."""
        return []

    def events(self) -> list[Event]:
        """What else there is to say since the last call."""
        return []

    @property
    def branch_tokens(self) -> int:
        """Tokens beyond the prompt that go through the model in batches."""
        return 0

    def resume(self) -> None:  # noqa: B027 - most jobs wait for nothing
        """What the job waited for is known. Raises `RequestError` where the job cannot go on."""

    def close(self) -> None:  # noqa: B027 - most jobs hold nothing there
        """Free what llama.cpp holds for this job."""

    def ended(self, now_s: float) -> Event:
        """The job's last event."""
        if self.reason != "cancelled":
            return self.success(now_s)
        return self._finished(now_s)

    def _finished(self, now_s: float) -> Finished:
        wait_s, prefill_s, decode_s = self.phases.durations_s(now_s)
        return Finished(
            job_id=self.job_id,
            reason=self.reason or "",
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            decoded_tokens=self.decoded_tokens,
            reasoning_tokens=self.reasoning_tokens,
            wait_s=wait_s,
            prefill_s=prefill_s,
            decode_s=decode_s,
            stop=self.stop,
            drafted_tokens=None if self.speculator is None else self.drafted_tokens,
            accepted_tokens=None if self.speculator is None else self.accepted_tokens,
            model_drafted_tokens=self.model_drafted_tokens or None,
            model_accepted_tokens=self.model_accepted_tokens if self.model_drafted_tokens else None,
            saved_s=0.0 if self.speculator is None else self.speculator.account.saved_s,
        )
