"""What a choice of experts found: a panel with its plan and predictions, or why there is none. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.forecast import Forecast, Prediction
from moe2.coordinator.choosing.panel_cost import Work
from moe2.coordinator.choosing.power_cap import FleetDraw
from moe2.coordinator.choosing.quality import Appraisal, Worth
from moe2.coordinator.choosing.request import Budgets, Mode
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.planning.proof import Plan


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
