"""PURE: speculative decoding of one model: what its sequences guess, how much of it goes into a step, what came of it.

Every token is drawn from what the model says at its place, as without guesses; a guess is accepted while it is the
token that was drawn. So an answer's distribution, and with a seed the answer itself, is that of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.lengths import Account, Offer, Rates, guess_lengths, shared_rates
from moe2.agent.engine.speculation.ngrams import (
    FORCED,
    SHARED,
    SUBSTITUTED,
    Guess,
    SharedNgrams,
    TokenHistory,
    ground_of_copy,
    grounds_after_substitution,
    grounds_of_copy,
)

_HOPELESS = 0.02
"""A chance below which no guess is looked at."""


class Speculator:
    """The guesses of one answer, and how they fare."""

    def __init__(self, prompt: Sequence[int], speculation: Speculation) -> None:
        self._prompt = prompt
        self._history: TokenHistory | None = None
        self._shared = speculation.ngrams
        self._model_rates = speculation.rates
        self._rates = Rates(speculation.rates.of)
        self._pending: Guess | None = None
        self._compared = 0
        self.account = Account()

    def guess(self, most: int) -> Guess | None:
        """At most so many tokens that may come next, at least one; None where nothing suggests any.

        The first of them is compared with what is drawn, whether it goes through the model or not, so that rates are
        known without trials.
        """
        history = self._known()
        place, length = history.longest()
        behind = history.substituted()
        rates = self._rates
        by_length = rates.of(ground_of_copy(length)) if length else 0.0
        by_substitution = 0.0 if behind is None else rates.of(SUBSTITUTED)
        guess = None
        if rates.of(SHARED) > max(by_length, by_substitution) and (
            shared := self._shared.following(history.tokens, most)
        ):
            guess = Guess(shared, [SHARED] * len(shared))
        elif behind is not None and by_substitution > by_length:
            guess = Guess(history.copy(behind, 0, most), grounds_after_substitution(most))
        elif length:
            guess = Guess(history.copy(place, length, most), grounds_of_copy(length, most))
        self._pending, self._compared = guess, 0
        return guess

    def suppose(self, tokens: list[int]) -> Guess:
        """A guess of tokens, at least one, that will come in any case."""
        self._pending, self._compared = Guess(tokens, [FORCED] * len(tokens)), 0
        return self._pending

    def offer(self, guess: Guess, plain_s: float) -> Offer:
        """A guess as it is weighed against those of other sequences. plain_s: what a step takes without guesses."""
        if guess.grounds[0] == FORCED:
            return Offer([1.0] * len(guess.tokens), inf)
        likely: list[float] = []
        chance = 1.0
        for ground in guess.grounds:
            rate = self._rates.of(ground)
            chance *= rate
            if chance < _HOPELESS:
                break
            likely.append(rate)
        return Offer(likely, self.account.allowance_s(plain_s))

    def drew(self, token: int) -> None:
        """The answer goes on with this token."""
        guess = self._pending
        if guess is not None and self._compared < len(guess.tokens):
            is_right = guess.tokens[self._compared] == token
            ground = guess.grounds[self._compared]
            self._rates.learn(ground, is_right)
            self._model_rates.learn(ground, is_right)
            self._compared += 1
            if not is_right:
                self._pending = None
        history = self._known()
        history.append(token)
        self._shared.learn(history.tokens)

    def _known(self) -> TokenHistory:
        """The prompt and the answer so far. A prompt is looked through once, when its answer begins."""
        if self._history is None:
            self._history = TokenHistory(self._prompt)
        return self._history


class Speculation:
    """What a model's sequences share: the table of n-grams, how often guesses are right, what steps take."""

    def __init__(self, costs: StepCosts) -> None:
        self.costs = costs
        self.ngrams = SharedNgrams()
        self.rates = shared_rates()

    def speculator(self, prompt: Sequence[int]) -> Speculator:
        """The speculator of one answer."""
        return Speculator(prompt, self)

    def lengths(
        self,
        guesses: Sequence[tuple[Speculator, Guess]],
        *,
        sequences: int,
        beside_s: float,
        room: int,
    ) -> list[int]:
        """How many tokens of each guess to put into the next step (see `guess_lengths`)."""
        plain_s = self.costs.of(sequences)
        offers = [speculator.offer(guess, plain_s) for speculator, guess in guesses]
        return guess_lengths(offers, seconds=self.costs.of, sequences=sequences, beside_s=beside_s, room=room)

    def settle(self, made: Sequence[tuple[Speculator, int, int]], *, sequences: int) -> None:
        """A step is over. made: of each sequence that may guess, how many tokens it guessed and how many were right."""
        plain_s = self.costs.of(max(sequences, 1))
        guessed = sum(count for _, count, _ in made)
        extra_s = self.costs.of(sequences + guessed) - plain_s if guessed else 0.0
        for speculator, count, accepted in made:
            share_s = extra_s * count / guessed if guessed else 0.0
            speculator.account.settle(accepted=accepted, plain_s=plain_s, taken_s=share_s * sequences, longer_s=extra_s)
