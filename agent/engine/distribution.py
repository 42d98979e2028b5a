"""PURE: what the model thinks of the next token: log-softmax of its raw logits, before any sampling parameter."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


def log_normalizer(logits: Logits) -> float:
    """log Σ exp(logits), stable for any magnitude; shape (vocabulary,) to a scalar."""
    highest = logits.max()
    return float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def logprob(logits: Logits, token: int) -> float:
    """Natural log-probability of one token."""
    return float(logits[token]) - log_normalizer(logits)


def within(top_p: float, likely: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The first of these tokens, best first, that together have at least the probability `top_p`; at least one."""
    mass = 0.0
    for count, (_, value) in enumerate(likely, start=1):
        mass += math.exp(value)
        if mass >= top_p:
            return likely[:count]
    return likely


def most_likely(logits: Logits, count: int) -> list[tuple[int, float]]:
    """The `count` most likely tokens with their log-probabilities, best first; ties go to the lower id."""
    count = min(count, len(logits))
    if not count:
        return []
    normalizer = log_normalizer(logits)
    chosen = np.argpartition(logits, -count)[-count:]
    ordered = chosen[np.lexsort((chosen, -logits[chosen]))]
    return [(int(token), float(logits[token]) - normalizer) for token in ordered]
