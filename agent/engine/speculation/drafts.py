"""PURE: whether a draft model is asked for guesses, by whom, and for how many: only where it was measured to pay.

A draft model guesses better than the text where nothing repeats, but each of its tokens takes a step of its own, before
the step of the model itself. It pays where its steps and the longer step together, over the expected tokens, take less
than a plain step. What it may take before that is known, and on answers that are long or short by chance, has a bound
over all requests (`Account`), so that a draft model that never pays costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

MAX_DRAFTED = 8
"""Tokens that a draft model guesses at once for one sequence."""
_MIN_COMPARED = 4
"""Guesses of an answer that have to be compared before its own rate counts: they are a trial."""
_MIN_GAIN = 0.04
"""A draft model is asked for a gain of at least this, twice what a guess from the text is made for: two costs are
estimated."""
_TRIAL_RATE = 0.9
"""A trial is made only where guesses that are right so often would pay."""
_MAX_STEPS_AHEAD = 128
"""Of an answer without a limit so many further steps are thought of when the draft model has to read first."""
_READ_SHARE = 0.5
"""Reading may take at most this part of what it is expected to bring."""


@dataclass(frozen=True, slots=True)
class DraftOffer:
    """A sequence that a draft model could guess for.

    rate: how often its guesses are right, 0..1. compared: how many of this answer's were. most: tokens that may be
    guessed. lag: tokens that the draft model has not read yet, at least one. left: tokens still to come, None where
    nobody knows.
    """

    rate: float
    compared: float
    most: int
    lag: int
    left: int | None = None


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """Seconds of a step with so many tokens, of the model itself (`target`) and of the draft model (`draft`)."""

    target: Callable[[int], float]
    draft: Callable[[int], float]


def draft_lengths(
    offers: Sequence[DraftOffer], costs: DraftCosts, *, sequences: int, beside_s: float, allowance_s: float
) -> list[int]:
    """Returns how many tokens the draft model is to guess for each offer, 0 where it is not asked.

    sequences: those that take a token of the next step. beside_s: what else that step takes, such as a prompt.
    allowance_s: what draft models may take from all sequences together.
    """
    counts = [0] * len(offers)
    if not offers:
        return counts
    trials = [offer.compared < _MIN_COMPARED for offer in offers]
    rates = [
        max(offer.rate, _TRIAL_RATE) if is_trial else offer.rate for offer, is_trial in zip(offers, trials, strict=True)
    ]
    by_rate = sorted(range(len(offers)), key=rates.__getitem__, reverse=True)
    best, best_value = (0, 0), _MIN_GAIN
    asked = 1
    while asked <= len(offers):
        few = by_rate[:asked]
        for count, value in enumerate(_values([rates[at] for at in few], costs, sequences, beside_s), 1):
            if value > best_value:
                best, best_value = (asked, count), value
        asked = asked * 2 if asked * 2 <= len(offers) or asked == len(offers) else len(offers)
    asked, count = best
    taken_s = 0.0
    for at in by_rate[:asked]:
        # A trial asks for one token: what follows a wrong one says nothing.
        wanted = min(1 if trials[at] else count, offers[at].most)
        taken_s += sequences * wanted * costs.draft(1)
        if taken_s > allowance_s:
            break
        counts[at] = wanted
    return counts


def reading_pays(
    offer: DraftOffer, costs: DraftCosts, *, seconds: float, sequences: int, beside_s: float, allowance_s: float
) -> bool:
    """Whether the draft model is to read what it has not read yet of a sequence, which takes it so many seconds."""
    if sequences * seconds > allowance_s:
        return False
    if offer.compared < _MIN_COMPARED:
        # A trial: that is what the allowance is for.
        return max(_values([max(offer.rate, _TRIAL_RATE)], costs, sequences, beside_s)) > _MIN_GAIN
    gain = max(_values([offer.rate], costs, sequences, beside_s), default=0.0)
    left = _MAX_STEPS_AHEAD if offer.left is None else min(offer.left, _MAX_STEPS_AHEAD)
    return gain > _MIN_GAIN and sequences * seconds < _READ_SHARE * gain * left * costs.target(sequences)


def _values(rates: Sequence[float], costs: DraftCosts, sequences: int, beside_s: float) -> list[float]:
    """What asking for 1, 2, 3, … tokens for sequences with these rates adds to the logarithm of all sequences' tokens a
    second."""
    asked, plain_s = len(rates), costs.target(sequences)
    expected, chances, drafting_s = [1.0] * asked, [1.0] * asked, 0.0
    values: list[float] = []
    for count in range(1, MAX_DRAFTED + 1):
        drafting_s += costs.draft(asked)
        for at, rate in enumerate(rates):
            chances[at] *= rate
            expected[at] += chances[at]
        longer = (costs.target(sequences + asked * count) + drafting_s + beside_s) / (plain_s + beside_s)
        values.append(sum(map(log, expected)) - sequences * log(longer))
    return values
