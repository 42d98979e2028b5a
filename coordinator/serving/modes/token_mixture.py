"""One next token from several members' distributions, and drawing it. PURE.

Each member sends its most likely tokens only. What its list lacks to 1 lies on tokens that nobody named; this remainder
is carried, not spread: the mixture

    p(t) = sum_n w_n p_n(t)     (p_n(t) = 0 where member n did not name t)

is a lower bound of the panel's true probability of every token, exact where all members named it, and 1 - sum_t p(t) is
the remainder. It counts where probabilities are summed up (top_p) and in the log-probabilities that a client sees; only
the draw itself is among the named tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from moe2.common.generation import NEUTRAL_SAMPLING, Sampling, completed
from moe2.common.link.messages import Candidate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenMixture:
    """T tokens, every one that some member named, most likely first, equals by their number.

    tokens: (T,) their numbers. logprobs: (T,) in the mixture. remainder: probability of the tokens that nobody named.
    members: the lists that it was made of.
    """

    tokens: IntArray
    logprobs: FloatArray
    remainder: float
    members: Sequence[Sequence[Candidate]]

    def at(self, place: int) -> Candidate:
        """One of the T tokens; its `logprob` is that of the mixture."""
        token = int(self.tokens[place])
        named = next(one for candidates in self.members for one in candidates if one.token == token)
        return Candidate(token, float(self.logprobs[place]), named.piece, named.ends)

    def best(self, count: int) -> tuple[Candidate, ...]:
        """The most likely tokens, at most `count`."""
        return tuple(self.at(place) for place in range(min(count, len(self.tokens))))


def mix_tokens(members: Sequence[Sequence[Candidate]], weights: Sequence[float]) -> TokenMixture:
    """The mixture of the members' lists, none of them empty; weights: as many, with the sum 1."""
    count = sum(map(len, members))
    every = chain.from_iterable(members)
    named: IntArray = np.fromiter((candidate.token for candidate in every), np.int64, count)
    every = chain.from_iterable(members)
    logprobs = np.fromiter((candidate.logprob for candidate in every), np.float64, count)
    masses = np.exp(logprobs) * np.repeat(np.asarray(weights, dtype=np.float64), [len(one) for one in members])
    tokens, places = np.unique(named, return_inverse=True)
    probabilities = np.bincount(places, masses)
    # Stable, and the tokens are in order: equals stay in the order of their numbers.
    order = np.argsort(-probabilities, kind="stable")
    with np.errstate(divide="ignore"):
        mixed = np.log(probabilities[order])
    return TokenMixture(tokens[order], mixed, max(0.0, 1.0 - float(probabilities.sum())), members)


MIXED_SAMPLING = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
    }
)
"""Sampling parameters that `TokenDraw` honours. A request that sets any other one is not mixed."""


class TokenDraw:
    """Draws an answer's tokens, one after the other.

    Parameters mean what they mean on the agents: bias and penalties change the log-probabilities, temperature 0 takes
    the best, else `top_k`, `top_p` and `min_p` cut the tail before the temperature. The same seed draws the same tokens
    from the same mixtures, whatever the host: PCG64, one number per token. What is not set changes nothing.
    """

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._sampling = completed(sampling, NEUTRAL_SAMPLING)
        self._counts: Counter[int] = Counter()
        self._random = np.random.Generator(np.random.PCG64(seed))

    def draw(self, mixture: TokenMixture) -> Candidate:
        """Draw the answer's next token, and remember it for the penalties."""
        scores = self._steered(mixture)
        if self._sampling.temperature == 0:
            place = int(scores.argmax())
        else:
            kept = self._kept(scores, mixture.remainder)
            place = int(kept[self._place(scores[kept] / self._sampling.temperature)])
        chosen = mixture.at(place)
        self._counts[chosen.token] += 1
        return chosen

    def _steered(self, mixture: TokenMixture) -> FloatArray:
        """(T,) log-probabilities with bias and penalties, up to a constant."""
        sampling = self._sampling
        scores = mixture.logprobs.copy()
        for token, bias in sampling.logit_bias.items():
            scores[mixture.tokens == token] += bias
        if sampling.frequency_penalty or sampling.presence_penalty:
            for token, count in self._counts.items():
                scores[mixture.tokens == token] -= count * sampling.frequency_penalty + sampling.presence_penalty
        return scores

    def _kept(self, scores: FloatArray, remainder: float) -> npt.NDArray[np.intp]:
        """Places of the tokens that may be drawn, best first; never none."""
        sampling = self._sampling
        kept = np.argsort(-scores, kind="stable")
        if sampling.top_k:
            kept = kept[: sampling.top_k]
        if sampling.top_p < 1:
            masses = np.exp(scores[kept])
            # The tail that nobody named is part of the whole, unless top_k has cut it off.
            whole = masses.sum() + (0.0 if sampling.top_k else remainder)
            enough = int(np.searchsorted(np.cumsum(masses), sampling.top_p * whole)) + 1
            kept = kept[:enough]
        if sampling.min_p:
            kept = kept[scores[kept] >= scores[kept[0]] + math.log(sampling.min_p)]
        return kept

    def _place(self, scores: FloatArray) -> int:
        masses = np.exp(scores - scores.max())
        bounds = np.cumsum(masses)
        return min(int(np.searchsorted(bounds, self._random.random() * bounds[-1], side="right")), len(bounds) - 1)
