"""Rank: members write candidates, then each scores all of them, and the gate's weights with their views decide. PURE.

A score is a candidate's log-likelihood per UTF-8 byte given the prompt, so members need not share a tokenizer;
`choosing.judging` makes a decision of them. The winner is delivered in one piece; what the others wrote is accounted as
outvoted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moe2.common.link.messages import JobDone, JobScored, TokenPiece
from moe2.common.textstream import answer_text
from moe2.coordinator.choosing.mixture import FloatArray, best_of, judged, says_of
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import Attempt, Purpose
from moe2.coordinator.serving.effects import Completed, Effect
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.mode import CandidateShare, Collaboration
from moe2.coordinator.serving.modes.panel import PanelRun
from moe2.coordinator.serving.modes.vote import no_scores, score_job


@dataclass
class _Candidate:
    """A text that members wrote. writers: its authors, the heaviest first, whose pieces and reason it has."""

    text: str
    pieces: tuple[TokenPiece, ...]
    reason: str
    writers: list[Attempt] = field(default_factory=list)


class Rank(PanelRun):
    """A ranking in progress: a round of writing and a round of scoring."""

    def __init__(self, life: Lifecycle) -> None:
        super().__init__(life)
        self._selection: Selection | None = None
        self._pieces: dict[str, list[TokenPiece]] = {}
        self._reasons: dict[str, str] = {}
        self._candidates: list[_Candidate] = []
        self._scores: dict[str, list[float]] = {}
        self._shares: tuple[FloatArray, FloatArray] | None = None
        self._winner: _Candidate | None = None

    @property
    def leading(self) -> Attempt | None:
        return self._winner.writers[0] if self._winner else super().leading

    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        self._selection = selection
        todo: list[Effect] = []
        for member in selection.members:
            todo += self.life.answer(member.part(0), selection, now_s, Purpose.CANDIDATE)
            self._join(now_s)
        return todo

    def tokens(self, attempt: Attempt, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        self._pieces.setdefault(attempt.job_id, []).extend(pieces)
        return []

    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        if not self.is_waited_for(attempt):
            return []
        if not self._candidates:
            self._reasons[attempt.job_id] = ended.reason if isinstance(ended, JobDone) else "stop"
        elif isinstance(ended, JobScored) and len(ended.scores) == len(self._candidates):
            self._scores[attempt.job_id] = [score.logprob for score in ended.scores]
        else:
            return self.failed(attempt, no_scores(attempt), now_s)
        return self.arrived(attempt, now_s)

    def round_over(self, now_s: float) -> list[Effect]:
        if self._candidates:
            return self._decide(now_s)
        self._gather()
        if len(self._candidates) == 1:
            return self._deliver(self._candidates[0], now_s)
        return self._score(now_s)

    @property
    def collaboration(self) -> Collaboration:
        views, mixed = self._shares or (None, None)
        return Collaboration(
            members=self.shares(views),
            candidates=tuple(
                CandidateShare(
                    experts=tuple(writer.expert.key for writer in candidate.writers),
                    utf8_bytes=len(candidate.text.encode()),
                    probability=None if mixed is None else float(mixed[place]),
                    chosen=candidate is self._winner,
                )
                for place, candidate in enumerate(self._candidates)
            ),
            dropped=tuple(self.dropped),
        )

    def _join(self, now_s: float) -> None:
        """Take the attempt that was submitted last into this round."""
        attempt = self.life.attempts[-1]
        self.active.append(attempt)
        predicted_s = attempt.prediction.total_s
        self.wait_for(attempt, predicted_s.p95 if predicted_s else None, now_s)

    def _gather(self) -> None:
        """Make candidates of what was written, each text once; empty ones only where nobody wrote anything else."""
        found: dict[str, _Candidate] = {}
        for attempt in self.active:
            pieces = tuple(self._pieces.get(attempt.job_id, ()))
            text = answer_text(pieces)
            candidate = found.setdefault(text, _Candidate(text, pieces, self._reasons[attempt.job_id]))
            candidate.writers.append(attempt)
        self._candidates = [found[text] for text in found if text] or list(found.values())

    def _score(self, now_s: float) -> list[Effect]:
        """Have every expert that has written score all candidates."""
        assert self._selection is not None  # noqa: S101 - the run has begun
        texts = tuple(candidate.text for candidate in self._candidates)
        writing = {writer.expert.key for writer in self.active}
        self.active = []
        todo: list[Effect] = []
        for whole in self._selection.members:
            if whole.expert.key not in writing:
                continue
            member = whole.part(1)
            job = score_job(self.life, member, texts)
            todo += self.life.submit(member, self._selection, job, now_s, Purpose.SCORE)
            self._join(now_s)
        return todo

    def _nobody_left(self, now_s: float) -> list[Effect]:
        # Nobody can score any more, but there are answers: the heaviest member's own is the best guess.
        return self._deliver(self._candidates[0], now_s) if self._candidates else super()._nobody_left(now_s)

    def _decide(self, now_s: float) -> list[Effect]:
        n_bytes = np.array([len(candidate.text.encode()) for candidate in self._candidates])
        scores = np.array([self._scores[attempt.job_id] for attempt in self.active])
        wrote = np.array([[_has_written(judge, candidate) for candidate in self._candidates] for judge in self.active])
        writers = [sum(writer.member.weight for writer in candidate.writers) for candidate in self._candidates]
        views, mixed = judged(np.array(self.weights), scores / n_bytes, wrote, np.array(writers), self._says())
        self._shares = views, mixed
        return self._deliver(self._candidates[best_of(mixed)], now_s)

    def _says(self) -> FloatArray:
        """What the view of each of `active` is worth, by outcomes.

        Judges only tell equals apart where the gate knows some member by a prior, or nobody as a judge.
        """
        assert self._selection is not None  # noqa: S101 - the run has begun
        outlook = self._selection.outlook
        by_scoring = outlook.prompt_scores.by_scoring
        known = outlook.prompt_scores.trained[list(self._selection.places)].all()
        if by_scoring is None or not known:
            return says_of(np.full(len(self.active), np.nan))
        places = [outlook.forecast.roster.place[attempt.expert.key] for attempt in self.active]
        return says_of(by_scoring.scores[places])

    def _deliver(self, winner: _Candidate, now_s: float) -> list[Effect]:
        self._winner = winner
        for candidate in self._candidates:
            for writer in candidate.writers:
                if candidate is not winner and writer.state is AttemptState.ANSWERED:
                    writer.state = AttemptState.OUTVOTED
        delivered = self.life.deliver(winner.pieces, now_s) if winner.pieces else []
        return [*delivered, *self.life.conclude(Completed(winner.reason), now_s)]


def _has_written(judge: Attempt, candidate: _Candidate) -> bool:
    return any(writer.expert.key == judge.expert.key for writer in candidate.writers)
