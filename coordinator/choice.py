"""What a choice of experts is asked for, what it looks at, and what it says. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from moe2.coordinator.affinity import Affinity
from moe2.coordinator.appraisal import Appraisal
from moe2.coordinator.budgets import NO_BUDGETS, Budgets, Mode, Wish
from moe2.coordinator.coarse import Worth
from moe2.coordinator.errors import ErrorCode
from moe2.coordinator.panel import Work
from moe2.coordinator.planning.certificate import Plan
from moe2.coordinator.powercap import FleetDraw
from moe2.coordinator.predict import Demand, Prediction
from moe2.coordinator.roster import Forecast
from moe2.coordinator.table import Expert

ROUTE_ONLY = frozenset({Mode.ROUTE})


@dataclass(frozen=True)
class SelectionRequest:
    """What is asked for.

    model: a model's name, an expert's key, or one of `selection.ANY_MODEL`. text: the prompt as the gate reads it.
    excluded: keys of experts that must not be chosen, because they have failed this request already.
    barred: keys of experts that nobody is to be sent to now, with the reasons. reserved: those that are kept for others
    now and will be free soon, with the reasons. affinity: who holds the beginning of this conversation in its cache.
    restarts_seen: restarts by key of experts whose engine died under this request: out until they have others.
    least_context_tokens: a context that was found too small; only larger ones are worth a try.
    budgets: defaults of the key that asks. elapsed_s, spent_j: what former attempts have used up of the budgets.
    modes: those that can serve the request. choice_tokens: of all the choices that it gives; None if it gives none.
    """

    model: str
    demand: Demand
    text: str = ""
    wish: Wish = field(default_factory=Wish)
    budgets: Budgets = NO_BUDGETS
    excluded: frozenset[str] = frozenset()
    barred: Mapping[str, str] = field(default_factory=dict)
    reserved: Mapping[str, str] = field(default_factory=dict)
    restarts_seen: Mapping[str, int] = field(default_factory=dict)
    affinity: Affinity | None = None
    least_context_tokens: int = 0
    needs_chat_template: bool = False
    needs_tools: bool = False
    elapsed_s: float = 0.0
    spent_j: float = 0.0
    modes: frozenset[Mode] = ROUTE_ONLY
    choice_tokens: int | None = None


def still_down(restarts_seen: Mapping[str, int], experts: Iterable[Expert]) -> frozenset[str]:
    """Keys of the experts whose engine has not been restarted since it was seen with so many restarts."""
    return frozenset(expert.key for expert in experts if restarts_seen.get(expert.key) == expert.report.restarts)


@dataclass(frozen=True)
class Considered:
    """One expert of the fleet as it looked to the decision."""

    expert: Expert
    prediction: Prediction
    score: float
    trained: bool


@dataclass(frozen=True, eq=False)
class Outlook:
    """All experts that could serve a request, as they look for it. Details of one are made when asked for.

    work: what a panel does whose members all work; None where one expert answers. draw: what the fleet draws where
    that has a cap.
    """

    forecast: Forecast
    appraisal: Appraisal
    worth: Worth
    budgets: Budgets
    ruled_out: Mapping[str, str]
    work: Work | None = None
    draw: FleetDraw | None = None

    def at(self, place: int) -> Considered:
        """One expert of the roster."""
        return Considered(
            self.forecast.roster.experts[place],
            self.forecast.prediction(place),
            float(self.appraisal.scores[place]),
            bool(self.appraisal.trained[place]),
        )

    def member(self, place: int, weight: float) -> Member:
        """One expert of the roster as a member of a panel."""
        one = self.at(place)
        parts = tuple(part.prediction(place) for part in self.work.parts) if self.work else ()
        return Member(one.expert, one.prediction, one.score, weight, parts)

    @cached_property
    def considered(self) -> tuple[Considered, ...]:
        """Every expert, in the fleet's order."""
        return tuple(self.at(place) for place in range(len(self.forecast.roster)))


@dataclass(frozen=True)
class Member:
    """One expert of the panel that answers.

    weight: its share of the mixture; those of a panel sum to 1. parts: the prediction of each of its jobs, where they
    are several one after the other.
    """

    expert: Expert
    prediction: Prediction
    score: float
    weight: float = 1.0
    parts: tuple[Prediction, ...] = ()

    def part(self, number: int) -> Member:
        """The member as it does one of its jobs."""
        return replace(self, prediction=self.parts[number], parts=()) if self.parts else self


@dataclass(frozen=True)
class Selection:
    """The chosen panel, in the order of its members' weights, and why.

    candidates: keys of the experts that the coarse level left to the fine one. predicted: of all members together.
    """

    mode: Mode
    members: tuple[Member, ...]
    candidates: frozenset[str]
    category: str
    outlook: Outlook
    plan: Plan
    predicted: Prediction

    @property
    def first(self) -> Member:
        """Who answers, in a mode where one does."""
        return self.members[0]

    @property
    def considered(self) -> tuple[Considered, ...]:
        """In the fleet's order; `plan.members` are places in it."""
        return self.outlook.considered

    @property
    def budgets(self) -> Budgets:
        """The limits in force."""
        return self.outlook.budgets

    @property
    def kind(self) -> str | None:
        """What the gate takes the prompt for."""
        return self.outlook.appraisal.kind


@dataclass(frozen=True)
class NoExpert:
    """Nobody can take the request. `code` says which kind of answer the client gets.

    plan, outlook: set where the budgets rule everybody out. retry_after_s: when it may be different, if that is known.
    waits_s: how long waiting for less load may help; inf: as long as one likes; None: nobody can say. frees_in_s: until
    an expert that would do has a free slot, as predicted.
    """

    code: ErrorCode
    message: str
    plan: Plan | None = None
    outlook: Outlook | None = None
    retry_after_s: int | None = None
    waits_s: float | None = None
    frees_in_s: float | None = None

    @property
    def considered(self) -> tuple[Considered, ...]:
        """Every expert, where the budgets were the reason."""
        return self.outlook.considered if self.outlook else ()
