"""A request's lifecycle on the bench: what tests say to it, and all that it wanted done."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import msgspec

from moe2.common.energy import Energy, Quality
from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import JobDone, JobFailed, JobUsage, TokenPiece
from moe2.coordinator.choosing.request import SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Selection, still_down
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.serving import events
from moe2.coordinator.serving.effects import (
    AskToHedge,
    ChooseExperts,
    Conclude,
    Effect,
    Outcome,
    Retire,
    StopJob,
    SubmitJob,
)
from moe2.coordinator.serving.events import Event
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.modes import MODES
from tests.coordinator.experts import expert, request, selector

JOULES = Energy(joules=2.0, marginal_joules=1.0, quality=Quality.MEASURED_COUNTER)
USAGE = JobUsage(
    prompt_tokens=7, cached_tokens=3, decoded_tokens=5, queue_s=0.5, prefill_s=0.25, decode_s=1.0, energy=JOULES
)
EXPERTS = (expert("agent-1"), expert("agent-2", context_tokens=8192), expert("agent-3"))


class LifeBench:
    """One request with a clock. `choose` takes the experts in order; nobody is left when all are excluded.

    full: keys of experts that have no room now. refusal: what it says instead, if set. Hedges are granted while
    `hedges` lasts.
    """

    def __init__(self, *experts: Expert, queue_s: float = 0.0, hedges: int = 0, **fields: Any) -> None:
        self.experts = list(experts or EXPERTS)
        self.full: set[str] = set()
        self.why_full = NoExpert(ErrorCode.OVERLOADED, "All are busy.")
        self.hedges = hedges
        self.refusal: NoExpert | None = None
        self.now_s = 100.5
        self.chosen_for: list[SelectionRequest] = []
        self.effects: list[Effect] = []
        self.life = Lifecycle(request=request(**fields), queue_s=queue_s, modes=MODES)

    def _choose(self, asked: SelectionRequest) -> Selection | NoExpert:
        self.chosen_for.append(asked)
        if self.refusal:
            return self.refusal
        excluded = asked.excluded | still_down(asked.restarts_seen, self.experts)
        left = [found for found in self.experts if found.key not in excluded]
        fitting = [found for found in left if found.report.context_tokens > asked.least_context_tokens]
        if not fitting:
            return NoExpert(ErrorCode.EXHAUSTED, "Nobody is left.")
        fitting = [found for found in fitting if found.key not in self.full]
        if not fitting:
            return self.why_full
        any_model = msgspec.structs.replace(asked, model="moe2", needs_chat_template=False, excluded=frozenset())
        return selector().select(any_model, fitting[:1], {}, 0)

    def do(self, event: Event) -> list[Effect]:
        """All that an event leads to: every question is answered at once, in its place."""
        todo, done = deque(self.life.handle(event, self.now_s)), list[Effect]()
        while todo:
            match effect := todo.popleft():
                case ChooseExperts(asked=asked):
                    answer: Event = events.ExpertsChosen(self._choose(asked))
                    todo.extendleft(reversed(self.life.handle(answer, self.now_s)))
                case AskToHedge():
                    answer = events.HedgeAnswered(self.hedges > 0)
                    todo.extendleft(reversed(self.life.handle(answer, self.now_s)))
                case _:
                    done.append(effect)
                    self.hedges -= isinstance(effect, SubmitJob) and effect.is_hedge
        self.effects += done
        return done

    def admitted(self) -> LifeBench:
        self.do(events.Admitted())
        return self

    def tokens(self, *texts: str, attempt: int = 0) -> list[Effect]:
        return self.do(events.TokensArrived(f"req-1.{attempt}", tuple(TokenPiece(text) for text in texts)))

    def done(self, reason: str = "stop", *, attempt: int = 0, usage: JobUsage = USAGE) -> list[Effect]:
        return self.do(events.AttemptDone(JobDone(job_id=f"req-1.{attempt}", reason=reason, usage=usage)))

    def failed(
        self,
        code: str = "engine_crashed",
        *,
        attempt: int = 0,
        usage: JobUsage | None = USAGE,
        message: str = "It died.",
        in_batch: bool | None = False,
    ) -> list[Effect]:
        """in_batch: whether its engine was working on it when it died; by default it was nobody's fault."""
        failure = JobFailed(job_id=f"req-1.{attempt}", code=code, message=message, usage=usage, in_batch=in_batch)
        return self.do(events.AttemptFailed(failure))

    def restarted(self, agent_id: str = "agent-1") -> None:
        """The agent's engines have been started again."""
        self.experts = [
            replace(found, report=msgspec.structs.replace(found.report, restarts=found.report.restarts + 1))
            if found.agent_id == agent_id
            else found
            for found in self.experts
        ]

    def room(self) -> list[Effect]:
        self.full.clear()
        return self.do(events.RoomAppeared())

    def lost(self, agent_id: str = "agent-1") -> list[Effect]:
        return self.do(events.AgentLost(agent_id))

    def gone(self) -> list[Effect]:
        return self.do(events.ClientGone())

    def at_deadline(self) -> list[Effect]:
        """The request's own, or that of its winding down."""
        life = self.life
        self.now_s = life.request.deadline_s if life.outcome is None else life.next_deadline_s
        return self.do(events.TimePassed())

    def at_next(self) -> list[Effect]:
        """Whatever is due first."""
        self.now_s = self.life.next_deadline_s
        return self.do(events.TimePassed())


def submitted(effects: list[Effect]) -> list[str]:
    return [effect.job.job_id for effect in effects if isinstance(effect, SubmitJob)]


def stopped(effects: list[Effect]) -> list[tuple[str, str]]:
    return [(effect.agent_id, effect.job_id) for effect in effects if isinstance(effect, StopJob)]


def outcomes(effects: list[Effect]) -> list[Outcome]:
    return [effect.outcome for effect in effects if isinstance(effect, Conclude)]


def retires(effects: list[Effect]) -> bool:
    return any(isinstance(effect, Retire) for effect in effects)
