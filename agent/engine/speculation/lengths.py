"""PURE: how many of its guesses each sequence puts into the next step, so that all together gain most.

A token that was guessed right saves a step; every guess makes the step longer. What is gained is the expected number of
tokens over the expected seconds, as the product over all sequences of the step (proportional fairness): one sequence's
guesses may not take more from the others than they give to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log

from moe2.agent.engine.speculation.ngrams import GROUNDS

_FIRST_RATES = (
    *(0.5, 0.5, 1.0, 0.7, 0.9),
    *(0.3, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9, 0.92),
    *(0.5, 0.2, 0.4, 0.6, 0.8, 0.9),
)
"""How many guesses are right on each ground, before any was seen."""
_FIRST_WEIGHT = 4.0
"""What is known at first counts as so many guesses."""
_MEMORY = 0.9
"""Weight that a guess keeps for its request with every further one on the same ground."""
_LONG_MEMORY = 0.99
"""The same for a model's requests together."""
_PLACE_WEIGHT = 1.5
"""What is known of a guess's ground counts as so many guesses behind its token."""
_MIN_GAIN = 0.02
"""Guesses are made for a gain of at least this for each sequence that waits for the step: what guessing itself takes,
and what is not known better."""
_MIN_RETURN = 1.25
"""Where several sequences wait, guesses have to gain so many times what they take from all of them: the gains are some
sequences' alone, and part of them is lost again, as a batch of five takes as long as one of eight."""
_MIN_YIELD = 1.1
"""Beside prompts, guesses have to yield so many times what is written without any: their cost is not measured there."""
_FIRST_STEPS = 1.25
"""Steps' worth of time that a request may lose by guesses before they have gained anything."""
_FORESEEN_RIGHT, _FORESEEN_WRONG, _MAX_FORESEEN = 0.15, 0.5, 3.0
"""By how many steps' worth that grows with a token that was suggested rightly, shrinks with a wrong one, and at most:
where a batch of a few tokens takes several steps' time, guesses of a text that is copied must be allowed to begin."""
_LOOK_BEYOND = 1.5
"""More tokens are looked at that cost up to this times the allowance, as a few more may cost less."""
_LOSS_SHARE = 0.0075
"""The share of its time that a request may lose besides."""


Before = tuple[int, int]
"""The two tokens that a guess follows on; the first is -1 where there is one alone."""


class Rates:
    """How often guesses were right, by their ground."""

    def __init__(self, first: Callable[[int], float] | None = None, *, memory: float = _MEMORY) -> None:
        """first: the rate on a ground where little was seen yet."""
        self._first = first or _FIRST_RATES.__getitem__
        self._memory = memory
        self._right = [0.0] * GROUNDS
        self._seen = [0.0] * GROUNDS

    def of(self, ground: int) -> float:
        """The share of guesses on this ground that will be right, 0..1."""
        right = self._right[ground] + _FIRST_WEIGHT * self._first(ground)
        return right / (self._seen[ground] + _FIRST_WEIGHT)

    def seen(self, ground: int) -> float:
        """How many guesses on this ground are remembered, the older ones in part."""
        return self._seen[ground]

    def learn(self, ground: int, is_right: bool) -> None:
        """A guess turned out right or wrong."""
        self._right[ground] = self._right[ground] * self._memory + is_right
        self._seen[ground] = self._seen[ground] * self._memory + 1


def shared_rates() -> Rates:
    """Rates that a model's requests learn together."""
    return Rates(memory=_LONG_MEMORY)


class Places:
    """How often an answer's guesses were right behind each token, and behind each two: a text that is copied differs
    again where it differed before, as in its numbers, and a quotation mark begins a name or a value."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], tuple[float, float]] = {}
        """(right guesses, all guesses) behind one or two tokens, the older ones in part."""

    def rate(self, before: Before, rate: float) -> float:
        """The rate, 0..1, of a guess behind tokens, from that of all guesses on its ground."""
        for place in (before[1:], before):
            right, seen = self._seen.get(place, (0.0, 0.0))
            rate = (right + _PLACE_WEIGHT * rate) / (seen + _PLACE_WEIGHT)
        return rate

    def learn(self, before: Before, is_right: bool) -> None:
        """A guess behind tokens turned out right or wrong."""
        for place in (before[1:], before):
            right, seen = self._seen.get(place, (0.0, 0.0))
            self._seen[place] = right * _MEMORY + is_right, seen * _MEMORY + 1


class Account:
    """What a request's guesses have gained and cost it, in seconds: what they may lose has a bound."""

    def __init__(self) -> None:
        self.gained_s = 0.0
        """Gains less what the guesses took from all sequences."""
        self.saved_s = 0.0
        """By how much this request's own decoding was shorter for all guesses of its steps."""
        self._decoded_s = 0.0
        self._foreseen = 0.0
        """Steps' worth of time that guesses may lose besides, as they held whether they were put into a step or not."""

    def foresaw(self, is_right: bool) -> None:
        """What was suggested for the next token turned out right or wrong, without having cost anything."""
        change = _FORESEEN_RIGHT if is_right else -_FORESEEN_WRONG
        self._foreseen = min(max(self._foreseen + change, 0.0), _MAX_FORESEEN)

    def settle(self, *, accepted: int, plain_s: float, taken_s: float, longer_s: float) -> None:
        """Take in a step with `accepted` right guesses, each of which saved a step of `plain_s`.

        taken_s: what the request's own guesses took from all sequences together, its own among them. longer_s: by how
        much everybody's guesses made the step longer.
        """
        self.gained_s += accepted * plain_s - taken_s
        self.saved_s += accepted * plain_s - longer_s
        self._decoded_s += plain_s + longer_s

    def allowance_s(self, plain_s: float) -> float:
        """How much the next step's guesses of this request may take from all sequences together. plain_s: what the step
        takes without any."""
        return self.gained_s + (_FIRST_STEPS + self._foreseen) * plain_s + _LOSS_SHARE * self._decoded_s


@dataclass(frozen=True, slots=True)
class Offer:
    """Guesses of one sequence. likely: how likely each is right if those before it are. allowance_s: see `Account`.
    certain: how many at the beginning come in any case, and need no allowance."""

    likely: Sequence[float]
    allowance_s: float
    certain: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What a step has to do beside guesses.

    sequences: those that take a token of it. waiting: those whose prompts are still being read. beside_s: what these
    prompts take of the step.
    """

    sequences: int
    waiting: int = 0
    beside_s: float = 0.0

    @property
    def all_sequences(self) -> int:
        """Those that wait for the step's end."""
        return self.sequences + self.waiting


def guess_lengths(offers: Sequence[Offer], load: Load, *, seconds: Callable[[int], float], room: int) -> list[int]:
    """Returns how many guesses of each offer to put into the next step.

    seconds: of a step by its tokens. room: the most guesses of all together.
    """
    sequences, everybody = load.sequences, load.all_sequences
    min_return = _MIN_RETURN if everybody > 1 else 1.0
    counts = [0] * len(offers)
    best, best_value, plain_s = list(counts), _MIN_GAIN * everybody, seconds(sequences)
    chances = [1.0] * len(offers)
    is_over = [False] * len(offers)
    expected = [1.0] * len(offers)
    value = 0.0
    gains = [_next_gain(offer, 0, 1.0, 1.0) for offer in offers]
    while sum(counts) < room:
        at = max(range(len(offers)), key=gains.__getitem__, default=None)
        if at is None or gains[at] <= 0:
            break
        offer = offers[at]
        # All sequences wait for it.
        extra_s = everybody * (seconds(sequences + counts[at] + 1) - seconds(sequences + offer.certain))
        if counts[at] < offer.certain:
            extra_s = -inf
        if extra_s > _LOOK_BEYOND * offer.allowance_s:
            gains[at] = 0.0
            continue
        is_over[at] = extra_s > offer.allowance_s
        chances[at] *= offer.likely[counts[at]]
        expected[at] += chances[at]
        counts[at] += 1
        value += gains[at]
        gains[at] = _next_gain(offer, counts[at], chances[at], expected[at])
        longer = (seconds(sequences + sum(counts)) + load.beside_s) / (plain_s + load.beside_s)
        taken = everybody * log(longer)
        if load.waiting and not _yields_as_much(sum(expected) - len(offers), sum(counts), load, seconds):
            continue
        if value - taken > best_value and value >= min_return * taken and not any(is_over):
            best, best_value = list(counts), value - taken
    return best


def _yields_as_much(accepted: float, count: int, load: Load, seconds: Callable[[int], float]) -> bool:
    """Whether guesses beside prompts yield as many tokens, expected, as all sequences will write together in that time,
    once the prompts are read: else those that came first would be served at the expense of the others."""
    extra_s = seconds(load.sequences + count) - seconds(load.sequences)
    everybody = load.all_sequences
    return accepted * seconds(everybody) >= _MIN_YIELD * everybody * extra_s


def _next_gain(offer: Offer, count: int, chance: float, expected: float) -> float:
    """How much one more guess adds to the logarithm of a sequence's tokens."""
    if count >= len(offer.likely):
        return 0.0
    return log(1 + chance * offer.likely[count] / expected)
