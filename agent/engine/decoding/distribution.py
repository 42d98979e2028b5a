"""PURE: what the model thinks of the next token: log-softmax of its raw logits, before any sampling parameter."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]

_NEAR = 12.0
"""In logits: six millionths as likely as the best."""


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


def nucleus(logits: Logits, top_p: float) -> npt.NDArray[np.intp]:
    """The fewest of the most likely tokens that together have at least the probability `top_p`, by token.

    Of equally likely ones at the border the lower ids. Sorted are only tokens that come near the best one, as long as
    these are enough: a whole vocabulary takes milliseconds.
    """
    highest = logits.max()
    masses = np.exp(logits - highest)
    wanted = top_p * float(masses.sum(dtype=np.float64))
    near = np.flatnonzero(logits > highest - _NEAR)
    if float(masses[near].sum(dtype=np.float64)) < wanted:
        near = np.arange(len(logits))
    # By logits: two that differ by next to nothing may have the same mass.
    near_logits = logits[near]
    falling = np.sort(near_logits)[::-1]
    reached = np.cumsum(np.exp(falling - highest), dtype=np.float64)
    count = min(int(np.searchsorted(reached, wanted)) + 1, len(falling))
    least = falling[count - 1]
    above = near[near_logits > least]
    level = near[near_logits == least][: count - len(above)]
    return np.sort(np.concatenate((above, level)))


def most_likely(logits: Logits, count: int) -> list[tuple[int, float]]:
    """The `count` most likely tokens with their log-probabilities, best first; ties go to the lower id."""
    count = min(count, len(logits))
    if not count:
        return []
    normalizer = log_normalizer(logits)
    chosen = np.argpartition(logits, -count)[-count:]
    ordered = chosen[np.lexsort((chosen, -logits[chosen]))]
    return [(int(token), float(logits[token]) - normalizer) for token in ordered]
