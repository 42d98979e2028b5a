"""The gate over one fleet: trained experts by file or name, priors for others, and what a failing gate leaves. PURE.

The daemon loads the checkpoint; `choosing.quality.Scorer` builds a `FleetGate` for the fleet and asks it per prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.common.health import HealthWarning, Severity
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.gate.prior import ExpertFacts, Prior, prior_for
from moe2.coordinator.gate.votes import VoteRecord

FloatArray = npt.NDArray[np.float64]

PRIOR_TAU: Final = 0.1
_SUFFIX: Final = re.compile(r"(\.gguf|[-_.](i?q\d+(_[a-z0-9]+)*|f16|bf16|f32|fp16|gguf|imat))+$", re.IGNORECASE)


class GateMismatchError(Moe2Error):
    """The gate was trained for none of the fleet's experts."""


class FleetPrediction(msgspec.Struct, frozen=True, eq=False):
    """The gate's answer for one prompt, over the fleet's N experts in their order."""

    probabilities: FloatArray
    """(N,) probability that each expert answers well."""
    logits: FloatArray
    """(N,) a softmax over any subset of these gives its members' weights."""
    trained: npt.NDArray[np.bool_]
    """(N,) False where a prior stands in for training data."""
    warning: HealthWarning | None = None
    """Set where the trained gate failed on this prompt, so that every figure is a prior."""
    kinds: FloatArray | None = None
    """(K,) probability of each kind of prompt; None where no trained gate answered."""
    by_scoring: FloatArray | None = None
    """(N,) probability that each expert is right where it scores given options; None where that is not known."""
    answer_tokens: FloatArray | None = None
    """(N,) expected length of each expert's answer in tokens, NaN where unknown; None where no length is known."""


def plain_name(name: str) -> str:
    """A model's name without folder, quantization suffix, case and punctuation, as names are compared."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9]", "", _SUFFIX.sub("", base).lower())


class FleetGate:
    """A gate over the experts of one fleet.

    gate: None where no checkpoint is configured; every expert then has a prior. fleet: what is known of each expert.
    Raises GateMismatchError where the gate knows none of the fleet's experts, and ValueError for an empty fleet.
    """

    def __init__(self, gate: Gate | None, fleet: Sequence[ExpertFacts]) -> None:
        if not fleet:
            raise ValueError("a gate over no experts has no meaning")
        self._gate = gate
        self.experts = tuple(facts.name for facts in fleet)
        trained = gate.experts if gate else ()
        self._column = tuple(_column_of(facts, gate) for facts in fleet)
        if gate and all(column is None for column in self._column):
            raise GateMismatchError(
                f"The gate was trained for {', '.join(trained)}; the fleet has {', '.join(self.experts)}.",
                remedy="Train a gate with the fleet's experts, or remove the checkpoint to start from priors.",
            )
        self._is_trained = np.array([column is not None for column in self._column])
        # Without a trained gate nothing depends on the prompt.
        blind = (prior_for(facts, ()) for facts in fleet)
        self._blind = np.array([prior.probability(np.empty(0)) for prior in blind])
        self._priors: tuple[Prior | None, ...] = tuple(
            prior_for(facts, trained) if column is None else None
            for facts, column in zip(fleet, self._column, strict=True)
        )
        self.tau = gate.tau if gate else PRIOR_TAU
        unknown = np.zeros(len(fleet), dtype=np.bool_)
        self.by_priors: Final = FleetPrediction(self._blind, self._blind / self.tau, unknown)
        """The prediction for any prompt where every expert has its prior."""
        known = gate.votes if gate else None
        self.votes = VoteRecord.empty(len(fleet)) if known is None else known.of_fleet(self._column)
        """What is known of the fleet's votes, in the order of `experts`."""
        self.notices = self._notices(fleet)

    @property
    def n_kinds(self) -> int:
        """Number of kinds of prompts; 1 without a trained gate."""
        return 1 if self._gate is None else int(self._gate.parameters.task_bias.size)

    def predict(self, prompt: str, kind: int | None = None) -> FleetPrediction:
        """The gate's prediction for a prompt. Where the gate fails it does not raise: priors stand in, with a warning.

        kind: place of the prompt's kind among the gate's kinds; None lets the gate find it.
        """
        if self._gate is None:
            return self.by_priors
        try:
            answer = self._gate.predict(prompt, kind)
            trained = answer.probabilities
            if not np.isfinite(trained).all():
                raise FloatingPointError("the gate's answer is not finite")
        except Exception as error:
            warning = HealthWarning(
                code="gate_failed",
                severity=Severity.DEGRADED,
                message=f"The trained gate failed ({type(error).__name__}: {error}); priors are used instead.",
                remedy="Train the gate again, or remove its checkpoint from the configuration.",
            )
            return msgspec.structs.replace(self.by_priors, warning=warning)
        p = self._from_trained(trained)
        by_scoring = None if answer.by_scoring is None else self._from_trained(answer.by_scoring)
        lengths = None if answer.answer_tokens is None else self._lengths(answer.answer_tokens)
        return FleetPrediction(p, p / self.tau, self._is_trained, None, answer.kinds, by_scoring, lengths)

    def by_kind(self) -> FloatArray:
        """(K, N) the probability of each expert on each kind of prompt that the gate was trained on.

        Without a trained gate it is (1, N), of priors.
        """
        if self._gate is None:
            return self._blind[None, :]
        rows = np.asarray(self._gate.parameters.profile, dtype=np.float64)
        return np.array([self._from_trained(row) for row in rows])

    def _from_trained(self, trained: FloatArray) -> FloatArray:
        """(N,) the fleet's probabilities, from those of the trained experts on one prompt."""
        return np.array(
            [
                prior.probability(trained) if prior is not None else trained[column]
                for prior, column in zip(self._priors, self._column, strict=True)
            ]
        )

    def _lengths(self, trained: FloatArray) -> FloatArray:
        """(N,) the fleet's lengths of answers, from those of the trained experts; NaN for experts with priors."""
        return np.array([np.nan if column is None else trained[column] for column in self._column])

    def _notices(self, fleet: Sequence[ExpertFacts]) -> tuple[HealthWarning, ...]:
        """Notices for the operator about how names were matched and which experts have a prior only."""
        mapped = (_mapping(facts, column, self._gate) for facts, column in zip(fleet, self._column, strict=True))
        notices = [
            HealthWarning(
                code="gate_expert_mapped",
                severity=Severity.NOTICE,
                message=text,
                remedy="Train the gate with outcomes of this very model if its quantization matters.",
            )
            for text in mapped
            if text is not None
        ]
        notices += [
            HealthWarning(
                code="gate_expert_prior",
                severity=Severity.NOTICE,
                message=prior.reason,
                remedy=f"Run `moe2-coordinator tune --model {prior.name}`: it learns what this model is good at.",
            )
            for prior in self._priors
            if self._gate and prior is not None
        ]
        return tuple(notices)


def _column_of(facts: ExpertFacts, gate: Gate | None) -> int | None:
    """The place of the trained expert that an expert's model is: by its file's checksum, else by one of its names."""
    if gate is None:
        return None
    if facts.file_sha256 is not None and facts.file_sha256 in gate.files:
        return gate.files.index(facts.file_sha256)
    found = (_match(name, gate.experts) for name in (facts.name, *facts.also_called))
    return next((column for column in found if column is not None), None)


def _mapping(facts: ExpertFacts, column: int | None, gate: Gate | None) -> str | None:
    """What is to be said of an expert that stands for a trained one without being known as the same model."""
    if gate is None or column is None:
        return None
    name, file = gate.experts[column], gate.files[column]
    if None not in (file, facts.file_sha256):
        is_same = file == facts.file_sha256
        return None if is_same else f"{facts.name} uses what the gate learnt of {name}, which was another file."
    return None if name == facts.name else f"{facts.name} uses what the gate learnt of {name}."


def _match(name: str, trained: Sequence[str]) -> int | None:
    """The place of the trained expert with this name, else of the only one with the same plain name; None for none."""
    if name in trained:
        return list(trained).index(name)
    same = [n for n, other in enumerate(trained) if plain_name(other) == plain_name(name)]
    return same[0] if len(same) == 1 else None
