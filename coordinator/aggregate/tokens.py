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

import numpy as np
import numpy.typing as npt

from moe2.common.messages import Candidate, Sampling

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TokenMixture:
    """candidates: every token that some member named, most likely first, equals by their number; `logprob` is that of
    the mixture. remainder: probability of the tokens that nobody named.
    """

    candidates: tuple[Candidate, ...]
    remainder: float


def mix_tokens(members: Sequence[Sequence[Candidate]], weights: Sequence[float]) -> TokenMixture:
    """The mixture of the members' lists; weights: as many, with the sum 1."""
    probabilities: dict[int, float] = {}
    named: dict[int, Candidate] = {}
    for candidates, weight in zip(members, weights, strict=True):
        for candidate in candidates:
            mass = weight * math.exp(candidate.logprob)
            probabilities[candidate.token] = probabilities.get(candidate.token, 0.0) + mass
            named.setdefault(candidate.token, candidate)
    order = sorted(probabilities, key=lambda token: (-probabilities[token], token))
    return TokenMixture(
        candidates=tuple(
            Candidate(token, _log(probabilities[token]), named[token].piece, named[token].ends) for token in order
        ),
        remainder=max(0.0, 1.0 - sum(probabilities.values())),
    )


class TokenDraw:
    """Draws an answer's tokens, one after the other.

    Parameters mean what they mean on the agents: bias and penalties change the log-probabilities, temperature 0 takes
    the best, else `top_k`, `top_p` and `min_p` cut the tail before the temperature. The same seed draws the same tokens
    from the same mixtures, whatever the host: PCG64, one number per token.
    """

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        self._random = np.random.Generator(np.random.PCG64(seed))

    def draw(self, mixture: TokenMixture) -> Candidate:
        """The answer's next token; remembered for the penalties."""
        scores = self._steered(mixture.candidates)
        if self._sampling.temperature == 0:
            place = int(scores.argmax())
        else:
            kept = self._kept(scores, mixture.remainder)
            place = int(kept[self._place(scores[kept] / self._sampling.temperature)])
        chosen = mixture.candidates[place]
        self._counts[chosen.token] += 1
        return chosen

    def _steered(self, candidates: Sequence[Candidate]) -> FloatArray:
        """(T,) log-probabilities with bias and penalties, up to a constant."""
        sampling = self._sampling
        scores = np.array([candidate.logprob for candidate in candidates])
        if sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty:
            for place, candidate in enumerate(candidates):
                scores[place] += sampling.logit_bias.get(candidate.token, 0.0)
                if count := self._counts[candidate.token]:
                    scores[place] -= count * sampling.frequency_penalty + sampling.presence_penalty
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


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
