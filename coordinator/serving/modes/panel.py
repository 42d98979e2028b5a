"""What the modes have in common in which several experts work for one answer. PURE.

Work goes in rounds: everybody in the panel is asked, and the round is over when nobody is waited for any more. A member
that fails is dropped, and so is one that is late once others are there: the rest go on with renormalised weights. Only
when nobody is left, and the client has seen nothing yet, other experts are chosen.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from weakref import ref

from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import JobFailed
from moe2.coordinator.choosing.mixture import FloatArray, renormalised
from moe2.coordinator.choosing.result import Member
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.effects import Effect, Failed
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.mode import DroppedMember, MemberShare, ModeRun

PATIENCE = 2.0
"""A member is late after so many times its p95 and `GRACE_S`, as soon as somebody else is there."""
GRACE_S = 1.0
"""Seconds that any host may be busy with something else."""
UNMEASURED_S = 10.0
"""A member whose time nobody can predict is late after so many seconds."""
_FINAL = (JobErrorCode.INVALID_REQUEST, JobErrorCode.INVALID_GRAMMAR, JobErrorCode.DEADLINE_EXCEEDED)
"""Codes of failures that would be the same with every expert."""


def patience_s(p95_s: float | None) -> float:
    """Seconds after which a member is late. p95_s: those that it should take; None if nobody knows."""
    return UNMEASURED_S if p95_s is None else GRACE_S + PATIENCE * p95_s


class PanelRun(ModeRun):
    """A panel at work, in rounds. active: attempts of the members that are still in, in the order of their weights."""

    hurries = True
    """Who is late depends on whether somebody else is there; each round has deadlines of its own."""

    def __init__(self, life: Lifecycle) -> None:
        # The life holds its run. Held by it in turn, a request that has ended would stay in memory, with all figures
        # of its choice, until the garbage collector comes by.
        self._life = ref(life)
        self.active: list[Attempt] = []
        self.dropped: list[DroppedMember] = []
        self._due_s: dict[str, float] = {}
        self._last_failure: JobFailed | None = None

    @property
    def life(self) -> Lifecycle:
        """The request's life, which lives as long as anybody asks this run anything."""
        life = self._life()
        assert life is not None  # noqa: S101 - it is the life that asks
        return life

    @property
    def next_deadline_s(self) -> float | None:
        somebody_is_there = len(self._due_s) < len(self.active)
        return min(self._due_s.values()) if self._due_s and somebody_is_there else None

    @property
    def members(self) -> list[Member]:
        """The members that are still in."""
        return [attempt.member for attempt in self.active]

    @property
    def weights(self) -> list[float]:
        """The weights of `members`; they sum to 1."""
        return renormalised([member.weight for member in self.members]).tolist() if self.active else []

    @property
    def leading(self) -> Attempt | None:
        return self.active[0] if self.active else None

    def shares(self, views: FloatArray | None = None) -> tuple[MemberShare, ...]:
        """Each member's part in the answer. views: (members, options), what each thought of the options if asked."""
        return tuple(
            MemberShare(
                expert=member.expert.key,
                weight=weight,
                distribution=None if views is None else tuple(views[place].tolist()),
            )
            for place, (member, weight) in enumerate(zip(self.members, self.weights, strict=True))
        )

    @abstractmethod
    def round_over(self, now_s: float) -> list[Effect]:
        """Go on when nobody is waited for any more, and somebody is left."""

    def wait_for(self, attempt: Attempt, p95_s: float | None, now_s: float) -> None:
        """Keep the round open for this attempt. p95_s: seconds that it should take; None if nobody knows."""
        self._due_s[attempt.job_id] = now_s + patience_s(p95_s)

    def is_waited_for(self, attempt: Attempt) -> bool:
        return attempt.job_id in self._due_s

    def arrived(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Take in that an attempt has given what the round needs from it."""
        del self._due_s[attempt.job_id]
        return self.proceed(now_s)

    def drop(self, attempt: Attempt, reason: str) -> None:
        """Go on without this member."""
        self.active.remove(attempt)
        self._due_s.pop(attempt.job_id, None)
        self.dropped.append(DroppedMember(expert=attempt.expert.key, reason=reason))

    def proceed(self, now_s: float) -> list[Effect]:
        """Begin the next round, if this one is over."""
        if not self.active:
            return self._nobody_left(now_s)
        return [] if self._due_s else self.round_over(now_s)

    def failed(self, attempt: Attempt, failed: JobFailed, now_s: float) -> list[Effect]:
        if attempt not in self.active:
            return []
        self._last_failure = failed
        self.drop(attempt, failed.message)
        return self.proceed(now_s)

    def time_passed(self, now_s: float) -> list[Effect]:
        """Drop the members that are late."""
        late = [attempt for attempt in self.active if self._due_s.get(attempt.job_id, math.inf) <= now_s]
        todo: list[Effect] = []
        for attempt in late:
            attempt.error = "late: the others were there"
            todo += self.life.suspect(attempt, hangs=False)
            todo += self.life.stop(attempt)
            self.drop(attempt, attempt.error)
        return [*todo, *self.proceed(now_s)]

    def _nobody_left(self, now_s: float) -> list[Effect]:
        told = self._last_failure
        if told and (self.life.first_token_s is not None or told.code in _FINAL):
            return self.life.conclude(Failed(told.code, told.message), now_s)
        return self.life.plan_again(told, now_s)
