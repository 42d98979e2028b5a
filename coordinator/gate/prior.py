"""Priors: the probabilities that are assumed of an expert that the gate was never trained on. PURE.

An expert without outcomes starts from the trained experts of its family, or else from all trained experts; its log-odds
are raised or lowered by its size relative to theirs, and its users' scores count more and more as they come in. Without
any trained expert it starts from its size alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gate.calibration import log_odds_of, sigmoid

FloatArray = npt.NDArray[np.float64]

LOG_ODDS_PER_DOUBLING: Final = 0.27
"""The rise of the log-odds of a right answer per doubling of the parameters.

Median over four families (Llama 2 7B-70B, Llama 3.1 8B-70B, Yi 6B-34B, Qwen 1.5 7B-72B: 0.24 to 0.31) of the published
MMLU-Pro answers in TIGER-AI-Lab/MMLU-Pro (commit f418b11).
"""
REFERENCE_PARAMETERS: Final = 8e9
"""Parameters of the model that `REFERENCE_PROBABILITY` is assumed of."""
REFERENCE_PROBABILITY: Final = 0.5
"""Probability of a good answer where no expert was trained; only differences between experts matter for the choice."""
PRIOR_WEIGHT: Final = 20.0
"""Number of users' scores that the prior weighs as much as."""

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
_SIZES: Final = {"phi-3-mini": 3.8e9, "phi-3.5-mini": 3.8e9, "phi-3-small": 7.4e9, "phi-3-medium": 14e9}
"""Parameters of models whose names do not tell."""
_SIZE: Final = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class ExpertFacts:
    """What is known of an expert besides outcomes; None is unknown. Raises ValueError for impossible figures."""

    name: str
    """Name of its model."""
    family: str | None = None
    """Family of its model, such as "llama"."""
    parameters: float | None = None
    """Number of its parameters."""
    feedback_sum: float = 0.0
    """Sum of the scores, 0..1 each, that users gave it."""
    feedback_count: int = 0
    """Number of these scores."""
    also_called: tuple[str, ...] = ()
    """Other names that the same file goes by in the fleet."""
    file_sha256: str | None = None
    """What its file is, whatever its names."""

    def __post_init__(self) -> None:
        if self.parameters is not None and self.parameters <= 0:
            raise ValueError(f"{self.name}: parameters must be positive, not {self.parameters}")
        if self.feedback_count < 0 or not 0 <= self.feedback_sum <= self.feedback_count:
            raise ValueError(f"{self.name}: {self.feedback_sum} is not a sum of {self.feedback_count} scores 0..1")


@lru_cache(maxsize=1024)
def facts_from_name(name: str) -> ExpertFacts:
    """The family and size that a model's name tells: "Llama-3.1-8B-Instruct" is of family llama with 8e9 parameters."""
    lowered = name.lower()
    found = next((family for family in _FAMILIES if family in lowered), None)
    size = _SIZE.search(name)
    parameters = next((known for part, known in _SIZES.items() if part in lowered), None)
    if size:
        parameters = float(size[2]) * (1e9 if size[3].lower() == "b" else 1e6) * (int(size[1]) if size[1] else 1)
    return ExpertFacts(name, _ANCESTOR.get(found, found) if found else None, parameters or None)


@dataclass(frozen=True)
class Prior:
    """The rule that makes one expert's probability from the trained experts' probabilities and its users' scores.

    It is sigmoid(mean log-odds of `relatives` + `shift`), averaged with the mean of the scores.
    """

    name: str
    """Name of the expert's model."""
    relatives: tuple[int, ...]
    """Places of the trained experts that it starts from; empty where none was trained."""
    shift: float
    """What its size adds to the log-odds."""
    feedback_mean: float | None
    """Mean of its users' scores; None without any."""
    feedback_share: float
    """Weight of that mean, 0..1."""
    reason: str
    """A sentence for status and logs that says where the prior comes from."""

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
    """The prior of an expert. trained: names of the experts that the gate was trained on; empty without a gate."""
    known = [facts_from_name(name) for name in trained]
    family = [n for n, other in enumerate(known) if facts.family is not None and other.family == facts.family]
    relatives = tuple(family) or tuple(range(len(known)))
    sizes = [known[n].parameters for n in relatives]
    references = [size for size in sizes if size is not None] if relatives else [REFERENCE_PARAMETERS]
    shift, adjustment = 0.0, "not adjusted for its size, which is unknown"
    if facts.parameters is not None and references:
        reference = float(np.exp(np.mean(np.log(references))))
        shift = LOG_ODDS_PER_DOUBLING * float(np.log2(facts.parameters / reference))
        adjustment = f"adjusted for its size of {facts.parameters / 1e9:g}B parameters"
    if family:
        origin = f"the trained experts of its family ({', '.join(trained[n] for n in family)})"
    elif relatives:
        origin = "the mean of all trained experts"
    else:
        origin = f"an assumed {REFERENCE_PROBABILITY:g} for a model of {REFERENCE_PARAMETERS / 1e9:g}B parameters"
    count = facts.feedback_count
    feedback = f", and averaged with {count} users' scores" if count else ""
    return Prior(
        name=facts.name,
        relatives=relatives,
        shift=shift,
        feedback_mean=facts.feedback_sum / count if count else None,
        feedback_share=count / (count + PRIOR_WEIGHT),
        reason=f"{facts.name} has no training data; its score starts from {origin}, {adjustment}{feedback}.",
    )
