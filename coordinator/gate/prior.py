"""Priors: what is assumed of an expert that the gate was never trained on. Pure: numpy only.

An expert without outcomes starts from its relatives in the checkpoint (same family, else all), shifted by its size, and
moves to its own measured feedback as that comes in. Nothing trained at all: its size alone, then feedback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gate.calibration import log_odds_of, sigmoid

FloatArray = npt.NDArray[np.float64]

LOG_ODDS_PER_DOUBLING: Final = 0.27
"""How much the log-odds of a right answer rise per doubling of the parameters.

Median over four families (Llama 2 7B-70B, Llama 3.1 8B-70B, Yi 6B-34B, Qwen 1.5 7B-72B: 0.24 to 0.31) of the published
MMLU-Pro answers in TIGER-AI-Lab/MMLU-Pro (commit f418b11).
"""
REFERENCE_PARAMETERS: Final = 8e9
REFERENCE_PROBABILITY: Final = 0.5
"""Assumed of an 8B model where nothing at all is known; only differences between experts matter for the choice."""
PRIOR_WEIGHT: Final = 20.0
"""How many feedback scores the prior weighs as much as."""

_FAMILIES: Final = (
    *("codellama", "codegemma", "codeqwen", "mathstral", "mixtral", "mistral", "smollm", "tinyllama"),
    *("llama", "gemma", "qwen", "phi", "yi", "granite", "falcon", "olmo", "deepseek", "command", "stablelm"),
)
_ANCESTOR: Final = {
    "codellama": "llama",
    "tinyllama": "llama",
    "codegemma": "gemma",
    "codeqwen": "qwen",
    "mathstral": "mistral",
    "mixtral": "mistral",
}
_SIZE: Final = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class ExpertFacts:
    """What is known of an expert besides outcomes. None is unknown.

    parameters: how many. feedback_sum, feedback_count: sum and number of scores 0..1 that users gave it.
    """

    name: str
    family: str | None = None
    parameters: float | None = None
    feedback_sum: float = 0.0
    feedback_count: int = 0

    def __post_init__(self) -> None:
        if self.parameters is not None and self.parameters <= 0:
            raise ValueError(f"{self.name}: parameters must be positive, not {self.parameters}")
        if self.feedback_count < 0 or not 0 <= self.feedback_sum <= self.feedback_count:
            raise ValueError(f"{self.name}: {self.feedback_sum} is not a sum of {self.feedback_count} scores 0..1")


def facts_from_name(name: str) -> ExpertFacts:
    """Family and size as far as the name tells them: "Llama-3.1-8B-Instruct" is llama, 8e9."""
    lowered = name.lower()
    found = next((family for family in _FAMILIES if family in lowered), None)
    size = _SIZE.search(name)
    parameters = None
    if size:
        parameters = float(size[2]) * (1e9 if size[3].lower() == "b" else 1e6) * (int(size[1]) if size[1] else 1)
    return ExpertFacts(name, _ANCESTOR.get(found, found) if found else None, parameters or None)


@dataclass(frozen=True)
class Prior:
    """How one expert's probability is made from the trained ones: sigmoid(mean log-odds of `relatives` + shift).

    relatives: columns of the trained gate; empty where there is none. reason: a sentence for status and logs.
    """

    name: str
    relatives: tuple[int, ...]
    shift: float
    feedback_mean: float | None
    feedback_share: float
    reason: str

    def probability(self, trained: FloatArray) -> float:
        """The expert's probability, from the trained experts' probabilities (N,) on the same prompt."""
        base = float(log_odds_of(REFERENCE_PROBABILITY * np.ones(1))[0])
        if self.relatives:
            base = float(log_odds_of(trained[list(self.relatives)]).mean())
        prior = float(sigmoid(np.array(base + self.shift)))
        if self.feedback_mean is None:
            return prior
        return (1 - self.feedback_share) * prior + self.feedback_share * self.feedback_mean


def prior_for(facts: ExpertFacts, trained: Sequence[str]) -> Prior:
    """The prior of an expert, given the names of the experts that the gate was trained on."""
    known = [facts_from_name(name) for name in trained]
    family = [n for n, other in enumerate(known) if facts.family is not None and other.family == facts.family]
    relatives = tuple(family) or tuple(range(len(known)))
    sizes = [known[n].parameters for n in relatives]
    references = [size for size in sizes if size is not None] if relatives else [REFERENCE_PARAMETERS]
    shift, size_text = 0.0, "its size is unknown"
    if facts.parameters is not None and references:
        reference = float(np.exp(np.mean(np.log(references))))
        shift = LOG_ODDS_PER_DOUBLING * float(np.log2(facts.parameters / reference))
        size_text = f"shifted by its size ({facts.parameters / 1e9:g}B)"
    if family:
        origin = f"from its family ({', '.join(trained[n] for n in family)})"
    elif relatives:
        origin = "from the mean of all trained experts"
    else:
        origin = "from its size alone"
    count = facts.feedback_count
    feedback = f", with {count} feedback scores" if count else ""
    return Prior(
        name=facts.name,
        relatives=relatives,
        shift=shift,
        feedback_mean=facts.feedback_sum / count if count else None,
        feedback_share=count / (count + PRIOR_WEIGHT),
        reason=f"{facts.name} has no training data; its prior comes {origin}, {size_text}{feedback}.",
    )
