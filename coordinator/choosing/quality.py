"""What the gate thinks of the fleet's experts, for one prompt and on the whole. PURE.

The gate knows models; the fleet has experts, several of which may serve one model. This is the map between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe2.common.health import HealthWarning, Severity
from moe2.coordinator.choosing.forecast import Roster
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.gate.feedback import Tally
from moe2.coordinator.gate.fleet_gate import FleetGate, GateMismatchError
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.gate.prior import ExpertFacts, facts_from_name
from moe2.coordinator.planning.value_table import ValueTable
from moe2.coordinator.planning.values import BestOf, Coverage, FloatArray, SetValue

LISTED_EXPERTS = 16
"""Fleets up to this size have the value of all their sets listed: half a megabyte, made in milliseconds."""


class Worth:
    """What sets of experts are worth, averaged over the kinds of prompts: where one of them answers, the score of the
    best; where all work together, the chance that at least one answers well (`together`).

    on_the_whole: (K, N) scores per kind of prompt. Does not depend on a request: made once per fleet and gate.
    """

    def __init__(self, on_the_whole: FloatArray, value: type[BestOf] | type[Coverage] = BestOf) -> None:
        self.value: SetValue = value(on_the_whole)
        self._on_the_whole = on_the_whole

    @cached_property
    def together(self) -> Worth:
        """The same of panels whose members all work."""
        return Worth(self._on_the_whole, Coverage)

    @cached_property
    def table(self) -> ValueTable | None:
        """The values of all sets, where they are few."""
        return ValueTable.build(self.value) if self.value.experts <= LISTED_EXPERTS else None


NO_TALLIES: Mapping[str, Tally] = {}
MAX_VIEWS = 64
"""Rosters remembered for one set of models."""


@dataclass(frozen=True)
class Appraisal:
    """One prompt's view of the experts, in the roster's order.

    scores: (N,) probability that each answers well. logits: (N,) the gate's; a softmax over a subset gives its members'
    weights. trained: (N,) False where a prior stands in for training data. kind: the kind of prompt that the gate takes
    it for; None without a trained gate.
    """

    scores: FloatArray
    logits: FloatArray
    trained: npt.NDArray[np.bool_]
    kind: str | None


class Appraiser:
    """Asks the gate. Keeps the gate fitted to the fleet's models.

    kinds: names of the prompt kinds of the gate's task head. tallies: users' scores by model; they move the priors.
    """

    def __init__(self, gate: Gate | None, kinds: Sequence[str] = (), tallies: Mapping[str, Tally] = NO_TALLIES) -> None:
        self._gate = gate
        self._tallies = tallies
        self._experts: Sequence[Expert] = ()
        self._kinds = tuple(kinds)
        self._facts: tuple[ExpertFacts, ...] = ()
        self._fitted = FleetGate(None, (ExpertFacts("nobody"),))
        self._views: dict[tuple[str, ...], _View] = {}
        self._mismatch: HealthWarning | None = None
        self._failure: HealthWarning | None = None

    def warnings(self) -> tuple[HealthWarning, ...]:
        """What an operator should know about the gate and the models it serves."""
        notices = self._fitted.notices if self._facts else ()
        return tuple(warning for warning in (self._mismatch, self._failure, *notices) if warning)

    def meet(self, experts: Sequence[Expert]) -> None:
        """Fit the gate to the fleet: whenever it has changed, before anything is asked about its experts."""
        self._experts = experts
        by_name = {expert.model: self._facts_of(expert) for expert in experts}
        facts = tuple(by_name[name] for name in sorted(by_name))
        if facts and facts != self._facts:
            self._fit(facts)

    def scored(self) -> None:
        """The tallies have changed."""
        self.meet(self._experts)

    def appraise(self, prompt: str, roster: Roster, category: str | None = None) -> Appraisal:
        """The prompt's own scores. Never fails: where the gate does, priors stand in and a warning is kept.

        category: as the request names it. Where that is one of the gate's kinds, the gate need not guess.
        """
        columns = self._view(roster).columns
        known = self._kinds.index(category) if category in self._kinds else None
        predicted = self._fitted.predict(prompt, known)
        self._failure = predicted.warning
        kind = None
        if predicted.kinds is not None and predicted.kinds.size == len(self._kinds):
            kind = self._kinds[int(predicted.kinds.argmax())]
        return Appraisal(predicted.probabilities[columns], predicted.logits[columns], predicted.trained[columns], kind)

    def on_the_whole(self, roster: Roster) -> Worth:
        """What sets of these experts are worth; the same object until what the gate knows of them changes.

        The mean probability per kind of prompt that the gate was trained on; of priors without one.
        """
        return self._view(roster).worth

    def _facts_of(self, expert: Expert) -> ExpertFacts:
        """What the model's name tells, its real size where the agent has read it from the file, and users' scores."""
        named = facts_from_name(expert.model)
        size = expert.report.parameters
        tally = self._tallies.get(expert.model, Tally())
        return ExpertFacts(
            expert.model,
            named.family,
            float(size) if size else named.parameters,
            feedback_sum=tally.total,
            feedback_count=tally.count,
        )

    def _fit(self, facts: tuple[ExpertFacts, ...]) -> None:
        self._facts = facts
        self._views.clear()
        try:
            self._fitted, self._mismatch = FleetGate(self._gate, facts), None
        except GateMismatchError as error:
            self._fitted = FleetGate(None, facts)
            self._mismatch = HealthWarning(
                code="gate_mismatch",
                severity=Severity.DEGRADED,
                message=f"The gate is not used: {error.message}",
                remedy=error.remedy or "Train the gate for this fleet.",
            )

    def _view(self, roster: Roster) -> _View:
        view = self._views.get(roster.models)
        if view is None:
            places = {name: place for place, name in enumerate(self._fitted.experts)}
            columns = np.array([places[name] for name in roster.models])
            view = _View(columns, Worth(self._fitted.by_kind()[:, columns]))
            if len(self._views) == MAX_VIEWS:
                self._views.clear()
            self._views[roster.models] = view
        return view


@dataclass(frozen=True, eq=False)
class _View:
    """What the fitted gate knows of one roster. columns: (N,) places of its experts' models."""

    columns: npt.NDArray[np.intp]
    worth: Worth
