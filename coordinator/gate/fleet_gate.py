"""The gate as the fleet sees it: trained experts matched by name, priors for the rest, and a gate that cannot crash it.

Pure: no clock, no files. `daemon.py` loads the checkpoint and builds this; `selection.py` asks it per prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.common.health import HealthWarning, Severity
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.gate.prior import ExpertFacts, Prior, prior_for

FloatArray = npt.NDArray[np.float64]

PRIOR_TAU: Final = 0.1
_SUFFIX: Final = re.compile(r"(\.gguf|[-_.](i?q\d+(_[a-z0-9]+)*|f16|bf16|f32|fp16|gguf|imat))+$", re.IGNORECASE)


class GateMismatchError(Moe2Error):
    """A checkpoint that has nothing to do with the fleet."""


@dataclass(frozen=True)
class FleetPrediction:
    """The gate's answer for one prompt, in the fleet's order.

    probabilities: (N,) probability that each expert answers well. logits: (N,) z. trained: (N,) False where a prior
    stands in. warning: set where the trained gate failed on this prompt and every figure is a prior. kinds: (K,)
    posterior over the kinds of prompts; None where no trained gate answered.
    """

    probabilities: FloatArray
    logits: FloatArray
    trained: npt.NDArray[np.bool_]
    warning: HealthWarning | None = None
    kinds: FloatArray | None = None


def plain_name(name: str) -> str:
    """A model name without folder, quantization suffix, case and punctuation: how names are compared."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9]", "", _SUFFIX.sub("", base).lower())


class FleetGate:
    """A gate over the experts of one fleet.

    gate: None where no checkpoint is configured: every expert then has a prior. Raises GateMismatchError where a
    checkpoint knows none of the fleet's experts, and ValueError for an empty fleet.
    """

    def __init__(self, gate: Gate | None, fleet: Sequence[ExpertFacts]) -> None:
        if not fleet:
            raise ValueError("a gate over no experts has no meaning")
        self._gate = gate
        self.experts = tuple(facts.name for facts in fleet)
        trained = gate.experts if gate else ()
        self._column = tuple(_match(facts.name, trained) for facts in fleet)
        if gate and all(column is None for column in self._column):
            raise GateMismatchError(
                f"The gate was trained for {', '.join(trained)}; the fleet has {', '.join(self.experts)}.",
                remedy="Train a gate with the fleet's experts, or remove the checkpoint to start from priors.",
            )
        self._blind = tuple(prior_for(facts, ()) for facts in fleet)
        self._priors: tuple[Prior | None, ...] = tuple(
            prior_for(facts, trained) if column is None else None
            for facts, column in zip(fleet, self._column, strict=True)
        )
        self.tau = gate.tau if gate else PRIOR_TAU
        self.notices = self._told(trained)

    def predict(self, prompt: str, kind: int | None = None) -> FleetPrediction:
        """The gate's view of a prompt. Never raises for a failing gate: priors then stand in, with a named warning.

        kind: which of the gate's kinds the prompt is of, where that is known.
        """
        if self._gate is None:
            return self._from_priors(None)
        try:
            answer = self._gate.predict(prompt, kind)
            trained = answer.probabilities
            if not np.isfinite(trained).all():
                raise FloatingPointError("the gate's answer is not finite")
        except Exception as error:
            return self._from_priors(
                HealthWarning(
                    code="gate_failed",
                    severity=Severity.DEGRADED,
                    message=f"The trained gate failed ({type(error).__name__}: {error}); priors are used instead.",
                    remedy="Train the gate again, or remove its checkpoint from the configuration.",
                )
            )
        p = self._from_trained(trained)
        known = np.array([column is not None for column in self._column])
        return FleetPrediction(p, p / self.tau, known, kinds=answer.kinds)

    def by_kind(self) -> FloatArray:
        """(K, N) probability of each expert on each kind of prompt the gate was trained on; (1, N) of priors without
        one.
        """
        if self._gate is None:
            return self._from_priors(None).probabilities[None, :]
        rows = np.asarray(self._gate.parameters.profile, dtype=np.float64)
        return np.array([self._from_trained(row) for row in rows])

    def _from_trained(self, trained: FloatArray) -> FloatArray:
        """(N,) for the fleet from the trained experts' probabilities."""
        return np.array(
            [
                prior.probability(trained) if prior is not None else trained[column]
                for prior, column in zip(self._priors, self._column, strict=True)
            ]
        )

    def _from_priors(self, warning: HealthWarning | None) -> FleetPrediction:
        p = np.array([prior.probability(np.empty(0)) for prior in self._blind])
        return FleetPrediction(p, p / self.tau, np.zeros(p.size, dtype=bool), warning)

    def _told(self, trained: Sequence[str]) -> tuple[HealthWarning, ...]:
        """What an operator should know about how names were matched and who runs on a prior."""
        told = [
            HealthWarning(
                code="gate_expert_mapped",
                severity=Severity.NOTICE,
                message=f"{name} uses what the gate learnt of {trained[column]}.",
                remedy="Train the gate with outcomes of this very model if its quantization matters.",
            )
            for name, column in zip(self.experts, self._column, strict=True)
            if column is not None and trained[column] != name
        ]
        told += [
            HealthWarning(
                code="gate_expert_prior",
                severity=Severity.NOTICE,
                message=prior.reason,
                remedy="Collect outcomes with `moe2-coordinator collect` and train the gate again.",
            )
            for prior in (self._priors if self._gate else self._blind)
            if prior is not None
        ]
        return tuple(told)


def _match(name: str, trained: Sequence[str]) -> int | None:
    """The trained expert of that name: the same name, else the only one whose plain name is the same."""
    if name in trained:
        return list(trained).index(name)
    same = [n for n, other in enumerate(trained) if plain_name(other) == plain_name(name)]
    return same[0] if len(same) == 1 else None
