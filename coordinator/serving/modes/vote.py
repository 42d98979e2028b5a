"""Vote: every member says how likely each choice is, and the mixture of their views decides. PURE."""

from __future__ import annotations

from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import JobDone, JobFailed, JobScored, ScoreJob, TokenPiece
from moe2.coordinator.choosing.mixture import FloatArray, best_of, distributions, mixture
from moe2.coordinator.choosing.request import Ballot
from moe2.coordinator.choosing.result import Member, Selection
from moe2.coordinator.serving.attempt import Attempt, Purpose
from moe2.coordinator.serving.effects import Completed, Effect
from moe2.coordinator.serving.life import Lifecycle, MakeJob
from moe2.coordinator.serving.mode import Collaboration
from moe2.coordinator.serving.modes.panel import PanelRun


class Vote(PanelRun):
    """A vote in progress: one round of scoring."""

    def __init__(self, life: Lifecycle) -> None:
        super().__init__(life)
        self._ballot = life.request.ballot or Ballot(())
        self._scores: dict[str, list[float]] = {}
        self._shares: tuple[FloatArray, FloatArray] | None = None

    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        todo: list[Effect] = []
        for member in selection.members:
            job = score_job(self.life, member, self._ballot.choices)
            todo += self.life.submit(member, selection, job, now_s, Purpose.SCORE)
            attempt = self.life.attempts[-1]
            self.active.append(attempt)
            predicted_s = member.prediction.total_s
            self.wait_for(attempt, predicted_s.p95 if predicted_s else None, now_s)
        return todo

    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        if not self.is_waited_for(attempt):
            return []
        if not isinstance(ended, JobScored) or len(ended.scores) != len(self._ballot.choices):
            return self.failed(attempt, no_scores(attempt), now_s)
        self._scores[attempt.job_id] = [score.logprob for score in ended.scores]
        return self.arrived(attempt, now_s)

    def round_over(self, now_s: float) -> list[Effect]:
        ballot = self._ballot
        lengths = [len(choice.encode()) for choice in ballot.choices] if ballot.length_normalised else None
        views = distributions([self._scores[attempt.job_id] for attempt in self.active], lengths)
        mixed = mixture(self.weights, views)
        self._shares = views, mixed
        answer = ballot.choices[best_of(mixed)]
        return [
            *self.life.deliver((TokenPiece(answer),), now_s),
            *self.life.conclude(Completed("stop"), now_s),
        ]

    @property
    def collaboration(self) -> Collaboration:
        views, mixed = self._shares or (None, None)
        return Collaboration(
            members=self.shares(views),
            distribution=None if mixed is None else tuple(mixed.tolist()),
            dropped=tuple(self.dropped),
        )


def score_job(life: Lifecycle, member: Member, continuations: tuple[str, ...]) -> MakeJob:
    """A job that has an expert say how likely each continuation is after the prompt."""
    request = life.request

    def job(job_id: str, deadline_s: float) -> ScoreJob:
        return ScoreJob(
            job_id=job_id,
            request_id=request.request_id,
            model=member.expert.model,
            prompt=request.prompt,
            continuations=continuations,
            deadline_s=deadline_s,
        )

    return job


def no_scores(attempt: Attempt) -> JobFailed:
    """The failure of an expert that was asked for scores and sent something else."""
    text = f"{attempt.expert.agent_name} did not send the scores that it was asked for."
    return JobFailed(job_id=attempt.job_id, code=JobErrorCode.AGENT_BROKE_RULES, message=text)
