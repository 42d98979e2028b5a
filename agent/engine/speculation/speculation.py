"""PURE: speculative decoding of one model: what its sequences guess, how much of it goes into a step, what came of it.

Every token is drawn from what the model says at its place, as without guesses; a guess is accepted while it is the
token that was drawn. So an answer's distribution, and with a seed the answer itself, is that of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.lengths import (
    Account,
    Before,
    Load,
    Offer,
    Places,
    Rates,
    guess_lengths,
    shared_rates,
)
from moe2.agent.engine.speculation.ngrams import (
    DRAFTED,
    FORCED,
    LONGEST_COPY,
    SHARED,
    SPELLED,
    SUBSTITUTED,
    Guess,
    SharedNgrams,
    TokenHistory,
    ground_of_copy,
    ground_of_draft,
    is_drafted,
)

_HOPELESS = 0.02
"""A chance below which no guess is looked at."""
_MAX_STEPS_UNSEEN = 32
"""After so many measured steps the one without guesses is measured again."""
_MIN_STEPS_BETWEEN = 16
"""Steps between two that are made without guesses to be measured."""
_MAX_REHEARSED = 256
"""Tokens at a prompt's end by which an answer's guesses are judged before it begins: about 12 microseconds each."""
_HELD_UP = 1.3
"""A step that is further off than by this factor was held up by something else: it costs its guesses no more."""


class _Pending:
    """A guess that what is drawn is compared with."""

    def __init__(self, guess: Guess, before: Before) -> None:
        self._guess = guess
        self._before = before
        self._compared = 0

    @property
    def next(self) -> int | None:
        """The token that comes next if the guess is right; None where it has nothing to say any more."""
        return self._guess.tokens[self._compared] if self._compared < len(self._guess.tokens) else None

    def compare(self, token: int, places: Places, *rates: Rates) -> bool:
        """Learn from the next token; False where the guess has nothing to say any more."""
        guess, at = self._guess, self._compared
        if at >= len(guess.tokens):
            return False
        is_right = guess.tokens[at] == token
        for each in rates:
            each.learn(guess.grounds[at], is_right)
            if is_drafted(guess.grounds[at]):
                each.learn(DRAFTED, is_right)
        if not is_drafted(guess.grounds[at]):
            places.learn(self._before, is_right)
        self._before = self._before[1], token
        self._compared += 1
        return is_right


class Speculator:
    """The guesses of one answer, and how they fare."""

    def __init__(self, prompt: Sequence[int], speculation: Speculation) -> None:
        self._prompt = prompt
        self._history: TokenHistory | None = None
        self._shared = speculation.ngrams
        self._model_rates = speculation.rates
        self._rates = Rates(speculation.rates.of)
        self._places = Places()
        self._pending: list[_Pending] = []
        self.account = Account()
        self.drafting_s = 0.0
        """What the draft model took for this step's guess, and no other step's."""

    def guess(self, most: int) -> Guess | None:
        """At most so many tokens that may come next, at least one; None where nothing suggests any.

        The first of them is compared with what is drawn, whether it goes through the model or not, so that rates are
        known without trials.
        """
        history = self._known()
        guess = self._from_itself(history, most)
        if (guess is None or self._rates.of(guess.grounds[0]) < self._rates.of(SHARED)) and (
            shared := self._shared.following(history.tokens, most)
        ):
            guess = Guess(shared, [SHARED] * len(shared))
        self._pending = [] if guess is None else [_Pending(guess, self._before())]
        return guess

    def _from_itself(self, history: TokenHistory, most: int) -> Guess | None:
        """What the prompt and the answer so far suggest; None for nothing."""
        place, length = history.longest()
        goes_on = history.copied_length > length
        by_length = self._rates.of(ground_of_copy(max(length, history.copied_length))) if length or goes_on else 0.0
        found: tuple[list[int], list[int]] = [], []
        if history.substituted() is not None and self._rates.of(SUBSTITUTED) > by_length:
            found = history.resume(most)
        elif goes_on:
            found = history.go_on(most)
        elif length:
            found = history.copy(place, length, most)
        return Guess(*found) if found[0] else None

    def suppose(self, coming: list[int], likely: list[int], most: int) -> Guess:
        """A guess of tokens that will come in any case, and of those that may follow on them: as in the text so far, or
        where that says nothing, the likely ones. At most so many; there is at least one."""
        known = coming[:most]
        tokens, grounds = self._known().behind(known, most - len(known))
        if not tokens and (spelled := likely[: most - len(known)]):
            behind = self._known().behind(known + spelled, most - len(known) - len(spelled))
            tokens, grounds = spelled + behind[0], [SPELLED] * len(spelled) + behind[1]
        guess = Guess(known + tokens, [FORCED] * len(known) + grounds)
        self._pending = [_Pending(guess, self._before())]
        return guess

    def rate(self, ground: int) -> float:
        """How often this answer's guesses on a ground are right, 0..1."""
        return self._rates.of(ground)

    def seen(self, ground: int) -> float:
        """How many of this answer's guesses on a ground were compared with what was drawn, as far as remembered."""
        return self._rates.seen(ground)

    def drafted(self, tokens: list[int], probabilities: Sequence[float]) -> Guess:
        """A draft model's guess, of at least one token, with the probabilities that it gives to them. What the text
        suggested is still compared."""
        guess = Guess(tokens, [ground_of_draft(probability) for probability in probabilities])
        self._pending.append(_Pending(guess, self._before()))
        return guess

    def offer(self, guess: Guess, plain_s: float) -> Offer:
        """A guess as it is weighed against those of other sequences. plain_s: what a step takes without guesses."""
        likely: list[float] = []
        chance, before = 1.0, self._before()
        for token, ground in zip(guess.tokens, guess.grounds, strict=True):
            rate = 1.0 if ground == FORCED else self._rates.of(ground)
            if ground != FORCED and not is_drafted(ground):
                rate = self._places.rate(before, rate)
            before = before[1], token
            chance *= rate
            if chance < _HOPELESS:
                break
            likely.append(rate)
        return Offer(likely, self.account.allowance_s(plain_s), guess.grounds.count(FORCED))

    def drew(self, token: int) -> None:
        """Take in the token that the answer goes on with, and judge by it what was suggested for its place."""
        if self._pending:
            if (suggested := self._pending[0].next) is not None:
                self.account.foresaw(suggested == token)
            self._pending = [
                each for each in self._pending if each.compare(token, self._places, self._rates, self._model_rates)
            ]
        history = self._known()
        history.append(token)
        self._shared.learn(history.tokens)

    def _before(self) -> Before:
        """The tokens that a guess follows on."""
        tokens = self._known().tokens
        return tokens[-2] if len(tokens) > 1 else -1, tokens[-1]

    def _known(self) -> TokenHistory:
        """The prompt and the answer so far. A prompt is looked through once, when its answer begins."""
        if self._history is None:
            self._history = TokenHistory(self._prompt[:-_MAX_REHEARSED])
            self._rehearse(self._history, self._prompt[-_MAX_REHEARSED:])
        return self._history

    def _rehearse(self, history: TokenHistory, coming: Sequence[int]) -> None:
        """Compare a prompt's last tokens with what the text before them suggests, as if they were drawn.

        A copy that the prompt has begun, as in a file of which some lines are changed already, or in an earlier turn of
        a chat, goes on in the answer with what was replaced in it. What was learned from another copy says nothing
        about this one, and is forgotten.
        """
        for token in coming:
            n_copies = history.n_copies
            guess = self._from_itself(history, 1)
            if history.n_copies > n_copies:
                history.forget_replaced()
                self._rates, self._places, self.account = Rates(self._model_rates.of), Places(), Account()
            if guess is not None:
                is_right = _Pending(guess, self._before()).compare(token, self._places, self._rates)
                if not is_right or history.copied_length >= LONGEST_COPY:
                    self.account.foresaw(is_right)
            history.append(token)


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is over. sequences: those that took a token of it. waiting: those whose prompts were read meanwhile.

    seconds: what it took without the draft model's part; None where prompts were read in it, as their part of the time
    is not known. reading_s: what the draft model took for reading what was written before it was asked.
    """

    sequences: int
    waiting: int = 0
    seconds: float | None = None
    reading_s: float = 0.0


class Speculation:
    """What a model's sequences share: the table of n-grams, how often guesses are right, what steps take."""

    def __init__(self, costs: StepCosts) -> None:
        self.costs = costs
        self.ngrams = SharedNgrams()
        self.rates = shared_rates()
        self.drafts = Account()
        """What a draft model has gained and taken, over all requests: it may lose no more than one of them."""
        self._steps = 0
        """Those that were measured."""
        self._plain_at: dict[int, int] = {}
        """The latest measured step without guesses, by its sequences."""
        self._trial_at = -_MIN_STEPS_BETWEEN
        """The latest step without guesses that was made to be measured."""

    def speculator(self, prompt: Sequence[int]) -> Speculator:
        """The speculator of one answer."""
        return Speculator(prompt, self)

    def lengths(self, guesses: Sequence[tuple[Speculator, Guess]], load: Load, *, room: int) -> list[int]:
        """How many tokens of each guess to put into the next step (see `guess_lengths`)."""
        if not load.waiting and self._is_plain_due(load.sequences):
            self._trial_at = self._steps
            return [0] * len(guesses)
        plain_s = self.costs.of(load.sequences)
        offers = [speculator.offer(guess, plain_s) for speculator, guess in guesses]
        return guess_lengths(offers, load, seconds=self.costs.cautious(load.sequences), room=room)

    def _is_plain_due(self, sequences: int) -> bool:
        """True where it is long ago that a step of so many sequences without guesses was measured: without one, nobody
        knows what guesses are compared with. Such steps are few, however often the number of sequences changes."""
        plain_at = self._plain_at.get(sequences, -_MAX_STEPS_UNSEEN)
        return self._steps - plain_at >= _MAX_STEPS_UNSEEN and self._steps - self._trial_at >= _MIN_STEPS_BETWEEN

    def settle(self, made: Sequence[tuple[Speculator, int, int]], step: Step) -> None:
        """Take in a step. made: of each sequence that may guess, how many tokens it guessed and how many were right."""
        guessed = sum(count for _, count, _ in made)
        sequences, everybody = max(step.sequences, 1), step.sequences + step.waiting
        if step.seconds is not None:
            self._steps += 1
            self.costs.learn(sequences + guessed, step.seconds)
            if not guessed:
                self._plain_at[sequences] = self._steps
        plain_s = self.costs.of(sequences)
        extra_s = self._taken_s(sequences + guessed, step.seconds) - plain_s if guessed else 0.0
        longer_s = extra_s + step.reading_s + sum(speculator.drafting_s for speculator, _, _ in made)
        right, taken_s = 0, 0.0
        for speculator, count, accepted in made:
            # All sequences wait for it.
            own_s = everybody * ((extra_s * count / guessed if guessed else 0.0) + speculator.drafting_s)
            speculator.account.settle(accepted=accepted, plain_s=plain_s, taken_s=own_s, longer_s=longer_s)
            if speculator.drafting_s:
                right, taken_s = right + accepted, taken_s + own_s
                speculator.drafting_s = 0.0
        self.drafts.settle(
            accepted=right, plain_s=plain_s, taken_s=taken_s + step.reading_s * everybody, longer_s=longer_s
        )

    def _taken_s(self, tokens: int, seconds: float | None) -> float:
        """What a step took, where nothing else held it up."""
        known_s = self.costs.of(tokens)
        return known_s if seconds is None else min(max(seconds, known_s / _HELD_UP), known_s * _HELD_UP)
