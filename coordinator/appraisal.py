"""What the gate thinks of the fleet's experts, for one prompt and on the whole. PURE.

The gate knows models; the fleet has experts, several of which may serve one model. This is the map between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.common.health import HealthWarning, Severity
from moe2.coordinator.gating.fleetgate import FleetGate, GateMismatchError
from moe2.coordinator.gating.gate import Gate
from moe2.coordinator.gating.prior import ExpertFacts, facts_from_name
from moe2.coordinator.table import Expert

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Appraisal:
    """One prompt's view of the experts, in their order.

    scores: (N,) probability that each answers well. trained: (N,) False where a prior stands in for training data.
    kind: the kind of prompt that the gate takes it for; None without a trained gate.
    """

    scores: FloatArray
    trained: npt.NDArray[np.bool_]
    kind: str | None


class Appraiser:
    """Asks the gate. Keeps one fitted gate for the present set of models.

    kinds: names of the prompt kinds of the gate's task head.
    """

    def __init__(self, gate: Gate | None, kinds: Sequence[str] = ()) -> None:
        self._gate = gate
        self._kinds = tuple(kinds)
        self._models: tuple[ExpertFacts, ...] = ()
        self._fitted: FleetGate | None = None
        self._mismatch: HealthWarning | None = None
        self._failure: HealthWarning | None = None

    def warnings(self) -> tuple[HealthWarning, ...]:
        """What an operator should know about the gate and the models it serves."""
        notices = self._fitted.notices if self._fitted else ()
        return tuple(warning for warning in (self._mismatch, self._failure, *notices) if warning)

    def appraise(self, prompt: str, experts: Sequence[Expert]) -> Appraisal:
        """The prompt's own scores. Never fails: where the gate does, priors stand in and a warning is kept."""
        fitted = self._fit(experts)
        predicted = fitted.predict(prompt)
        self._failure = predicted.warning
        columns = self._columns(fitted, experts)
        kind = None
        if predicted.kinds is not None and predicted.kinds.size == len(self._kinds):
            kind = self._kinds[int(predicted.kinds.argmax())]
        return Appraisal(predicted.probabilities[columns], predicted.trained[columns], kind)

    def on_the_whole(self, experts: Sequence[Expert]) -> FloatArray:
        """(K, N) mean probability per kind of prompt that the gate was trained on; (1, N) of priors without one."""
        fitted = self._fit(experts)
        return fitted.by_kind()[:, self._columns(fitted, experts)]

    def _fit(self, experts: Sequence[Expert]) -> FleetGate:
        by_name = {expert.model: _facts(expert) for expert in experts}
        models = tuple(by_name[name] for name in sorted(by_name))
        if self._fitted is None or models != self._models:
            self._models = models
            try:
                self._fitted, self._mismatch = FleetGate(self._gate, models), None
            except GateMismatchError as error:
                self._fitted = FleetGate(None, models)
                self._mismatch = HealthWarning(
                    code="gate_mismatch",
                    severity=Severity.DEGRADED,
                    message=f"The gate is not used: {error.message}",
                    remedy=error.remedy or "Train the gate for this fleet.",
                )
        return self._fitted

    @staticmethod
    def _columns(fitted: FleetGate, experts: Sequence[Expert]) -> list[int]:
        places = {name: place for place, name in enumerate(fitted.experts)}
        return [places[expert.model] for expert in experts]


def _facts(expert: Expert) -> ExpertFacts:
    """What the model's name tells, and its real size where the agent has read it from the file."""
    named = facts_from_name(expert.model)
    size = expert.report.parameters
    return ExpertFacts(expert.model, named.family, float(size) if size else named.parameters)
