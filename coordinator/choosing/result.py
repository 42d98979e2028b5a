"""Results of a choice of experts: a panel with its plan and predictions, or the reason why there is none. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
from msgspec.structs import replace

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.forecast import FloatArray, Forecast, IntArray, Prediction
from moe2.coordinator.choosing.panel_cost import Work
from moe2.coordinator.choosing.power_cap import FleetDraw
from moe2.coordinator.choosing.quality import PromptScores, SetWorth
from moe2.coordinator.choosing.request import Budgets, Mode, ScopePrice
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.planning.problem import Quantile
from moe2.coordinator.planning.proof import Plan

_NOBODY: IntArray = np.zeros(0, dtype=np.intp)


def still_down(restarts_seen: Mapping[str, int], experts: Iterable[Expert]) -> frozenset[str]:
    """Keys of the experts whose engine has not restarted since it died.

    restarts_seen: restarts by expert key, as counted when the engine died.
    """
    return frozenset(expert.key for expert in experts if restarts_seen.get(expert.key) == expert.report.restarts)


class Considered(msgspec.Struct, frozen=True):
    """One expert of the fleet with the figures that the choice saw."""

    expert: Expert
    prediction: Prediction
    """What the request would take there."""
    score: float
    """Probability, 0..1, that it answers the prompt well."""
    trained: bool
    """False where its score is a prior."""


class Outlook(msgspec.Struct, frozen=True, eq=False, dict=True):
    """All experts that could serve a request, with the figures that the choice rests on."""

    forecast: Forecast
    """What the request takes on each expert."""
    prompt_scores: PromptScores
    """How well each expert is expected to answer this prompt."""
    worth: SetWorth
    """What sets of the experts are worth over all kinds of prompts."""
    budgets: Budgets
    """The limits in force."""
    ruled_out: Mapping[str, str]
    """Reasons by key of the experts that are ruled out whatever the budgets are."""
    work: Work | None = None
    """What the members of a panel do; None where one expert answers."""
    draw: FleetDraw | None = None
    """What the fleet draws; None where its power is not capped."""
    price_per_j: float = 0.0
    """Score, 0..1, that one joule has to bring: the sum of `prices`, and of the request's own price."""
    prices: tuple[ScopePrice, ...] = ()
    """The average budgets that hold for the request, with their prices."""

    answer_tokens: FloatArray | None = None
    """(N,) lengths of answers that are expected, NaN where unknown; None where those that are planned for count."""

    @cached_property
    def expected_j(self) -> FloatArray:
        """(N,) joules to expect of each expert: those of an answer of the length that it gives to such prompts.

        Limits are kept for the longest answer that is planned for; choices and prices rest on these.
        """
        usual = self.forecast if self.answer_tokens is None else self.forecast.with_answers_of(self.answer_tokens)
        return usual.expected_j

    def late(self, places: IntArray) -> IntArray:
        """Those of the places whose experts do not keep the limits on seconds."""
        budgets, seconds = self.budgets, self.forecast
        quantile = (budgets.quantile or Quantile.P95).value
        is_late = np.zeros(len(places), dtype=np.bool_)
        for predicted, limit in (
            (seconds.ttft_s, budgets.ttft_budget_s),
            (seconds.total_s, budgets.latency_budget_s),
            (seconds.per_token_s, budgets.tpot_budget_s),
        ):
            if limit is not None:
                is_late |= getattr(predicted, quantile)[places] > limit
        return places[is_late]

    @cached_property
    def net_scores(self) -> FloatArray:
        """(N,) each expert's score for the prompt, less the price of the joules to expect of it."""
        scores = self.prompt_scores.scores
        if self.price_per_j == 0.0:
            return scores
        return np.asarray(scores - self.price_per_j * self.expected_j)

    def at(self, place: int) -> Considered:
        """The figures of the expert at `place` in the roster, the same object each time."""
        found = self._seen.get(place)
        if found is None:
            found = self._seen[place] = Considered(
                self.forecast.roster.experts[place],
                self.forecast.prediction(place),
                float(self.prompt_scores.scores[place]),
                bool(self.prompt_scores.trained[place]),
            )
        return found

    def member(self, place: int, weight: float) -> Member:
        """The expert at `place` in the roster, as a member of a panel."""
        one = self.at(place)
        parts = tuple(part.prediction(place) for part in self.work.parts) if self.work else ()
        return Member(one.expert, one.prediction, one.score, weight, parts)

    @cached_property
    def _seen(self) -> dict[int, Considered]:
        return {}

    @cached_property
    def considered(self) -> tuple[Considered, ...]:
        """The figures of every expert, in the roster's order."""
        return tuple(self.at(place) for place in range(len(self.forecast.roster)))


class Member(msgspec.Struct, frozen=True):
    """One expert of the panel that answers."""

    expert: Expert
    prediction: Prediction
    """What all of its jobs take."""
    score: float
    """Probability, 0..1, that it answers the prompt well."""
    weight: float = 1.0
    """Its share of the mixture; the weights of a panel sum to 1."""
    parts: tuple[Prediction, ...] = ()
    """What each of its jobs takes, in their order; empty where there is only one job."""

    def part(self, number: int) -> Member:
        """The member with the prediction of its job `number`, counted from 0."""
        return replace(self, prediction=self.parts[number], parts=()) if self.parts else self


class VoteRule(msgspec.Struct, frozen=True):
    """How the final answers of a panel's members are counted, in the order of the members."""

    weights: tuple[float, ...]
    """The weight of each member's vote, which is about its log-odds of being right; never negative."""
    other: float
    """What counts for an answer that nobody gave."""
    wanted: float | None
    """Probability of being right that ends the asking; None where only certainty about the outcome does."""
    value: float
    """Probability that the vote is right, as expected before anybody was asked."""
    expected_j: float
    """Joules to expect: most votes are settled before everybody was asked."""
    asked: tuple[float, ...]
    """How probably each member is asked."""
    note: str | None = None
    """Why one member suffices although a vote was asked for; None where several may be asked or nobody asked."""


class Selection(msgspec.Struct, frozen=True, eq=False, dict=True):
    """The chosen panel, and what it was chosen by."""

    mode: Mode
    members: tuple[Member, ...]
    """The experts that answer, the heaviest weight first; where they are asked in turn, in that order."""
    candidate_places: IntArray
    """Places in the roster, ascending, of the experts that the coarse level left to the fine one."""
    category: str
    """The category whose default budgets applied."""
    outlook: Outlook
    plan: Plan
    predicted: Prediction
    """What all members take together."""
    vote: VoteRule | None = None
    """How final answers are counted; None where none are."""
    late_places: IntArray = _NOBODY
    """Places of experts that keep the limits by the plan, but not beside what is at work there."""

    @cached_property
    def candidates(self) -> frozenset[str]:
        """Keys of the experts that the coarse level left to the fine one."""
        keys = self.outlook.forecast.roster.keys
        return frozenset(keys[place] for place in self.candidate_places.tolist())

    @property
    def places(self) -> tuple[int, ...]:
        """Places of the members in the roster."""
        place = self.outlook.forecast.roster.place
        return tuple([place[member.expert.key] for member in self.members])

    @property
    def first(self) -> Member:
        """The member with the heaviest weight: the only one in a mode where one expert answers."""
        return self.members[0]

    @property
    def considered(self) -> tuple[Considered, ...]:
        """The figures of every expert, in the roster's order; `plan.members` are places in it."""
        return self.outlook.considered

    @property
    def budgets(self) -> Budgets:
        """The limits in force."""
        return self.outlook.budgets

    @property
    def kind(self) -> str | None:
        """The kind of prompt that the gate takes this one for; None without a trained gate."""
        return self.outlook.prompt_scores.kind


@dataclass(frozen=True)
class NoExpert:
    """The reason why no expert can take the request."""

    code: ErrorCode
    """The kind of error that the client gets."""
    message: str
    plan: Plan | None = None
    """The infeasible plan, where the budgets rule everybody out."""
    outlook: Outlook | None = None
    """What the plan rests on, where the budgets rule everybody out."""
    retry_after_s: int | None = None
    """Seconds after which the answer may be different, if that is known."""
    waits_s: float | None = None
    """Seconds for which waiting for less load may help; inf is without end, None is unknown."""
    frees_in_s: float | None = None
    """Predicted seconds until an expert that could answer has a free slot; None is unknown."""

    @property
    def considered(self) -> tuple[Considered, ...]:
        """The figures of every expert where the budgets were the reason; else empty."""
        return self.outlook.considered if self.outlook else ()
