"""What the runs of one engine guess before a step, from the text and by a draft model. Knows no llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moe2.agent.engine.decoding.batch import Lanes, Run
from moe2.agent.engine.decoding.drafting import MAX_BEHIND, Drafter
from moe2.agent.engine.decoding.job import Job
from moe2.agent.engine.speculation.drafts import (
    MAX_DRAFTED,
    DraftCosts,
    DraftOffer,
    draft_lengths,
    reading_pays,
)
from moe2.agent.engine.speculation.lengths import Load
from moe2.agent.engine.speculation.ngrams import DRAFTED, FORCED, MAX_GUESSES, Guess
from moe2.agent.engine.speculation.speculation import Speculation, Speculator, Step

_READ_S = 0.08
"""How long the draft model reads in one step of the model, at most about."""
_MIN_READ_TOKENS = 32
_MANY_TOKENS = 1 << 20
_PATIENCE = 0.03
"""The part of a step's time that all sequences together may wait for the forms of their next tokens."""


@dataclass(slots=True)
class _Guesser:
    """A run that may guess before this step. most: tokens that it may guess."""

    run: Run
    job: Job
    speculator: Speculator
    most: int
    guess: Guess | None


class Guessing:
    """Has the runs of one engine guess, as far as it pays in the next step."""

    def __init__(
        self, speculation: Speculation, drafter: Drafter | None = None, *, clock: Callable[[], float] | None = None
    ) -> None:
        """drafter: None where no draft model guesses. clock: needed with a drafter."""
        self.speculation = speculation
        self._drafter = drafter
        self._clock = clock or (lambda: 0.0)
        self._reading_s = 0.0
        """What the draft model has read in this step took, in seconds."""
        self._drafting_s = 0.0
        """The same for its guesses."""

    def end(self, run: Run) -> None:
        """A run is over."""
        if self._drafter is not None:
            self._drafter.end(run)

    def guess(self, lanes: Lanes, jobs: Mapping[Run, Job], *, beside_s: float, room: int) -> None:
        """Give runs the guesses that go into the next step. beside_s: what else it takes, such as a prompt. room: the
        most tokens of it, guesses and others."""
        written = [run for run in lanes.runs if run.is_written]
        waiting = sum(run.remaining > 0 for run in lanes.runs) - len(written)
        if not lanes.kv_unified and len(written) + waiting > 1:
            # llama.cpp goes through the model once for each length of its lanes' parts.
            return
        load = Load(len(written), waiting, beside_s)
        free = lanes.cells_free
        guessers = list(self._from_the_text(written, jobs, free))
        self._reading_s = self._drafting_s = 0.0
        if self._drafter is not None and guessers:
            self._from_the_draft_model(self._drafter, guessers, load)
        guesses = [(each, each.guess) for each in guessers if each.guess is not None]
        if not guesses:
            return
        counts = self.speculation.lengths(
            [(each.speculator, guess) for each, guess in guesses], load, room=room - len(written)
        )
        for (each, guess), count in zip(guesses, counts, strict=True):
            # Guesses beyond a run's reservation are in cells that nobody has reserved, for this batch alone.
            reserved = each.run.reserved - len(each.run.tokens)
            count = min(count, reserved + free)
            free -= max(0, count - reserved)
            each.run.guesses = guess.tokens[:count]
            if each.run.guesses:
                each.run.certain = each.job.expect(each.run.guesses)

    def settle(
        self, made: Sequence[tuple[Speculator, int, int]], *, sequences: int, waiting: int, seconds: float | None
    ) -> None:
        """Learn from a step that is over what guesses cost and gain.

        made: of each sequence that may guess, how many tokens it guessed and how many were right. sequences: those that
        took a token of the step. waiting: those whose prompts were read meanwhile. seconds: from before its guesses on;
        None where prompts were read in it.
        """
        if seconds is not None:
            seconds -= self._reading_s + self._drafting_s
        self.speculation.settle(made, Step(sequences, waiting, seconds, self._reading_s))

    def _from_the_text(self, written: Sequence[Run], jobs: Mapping[Run, Job], free: int) -> list[_Guesser]:
        """Those that may guess, with what the text suggests."""
        found = []
        patience_s = _PATIENCE * self.speculation.costs.of(1) / max(1, len(written))
        for run in written:
            job = jobs[run]
            speculator = job.speculator
            most = job.guessable(min(MAX_GUESSES, run.reserved - len(run.tokens) + free))
            if speculator is not None:
                speculator.drafting_s = 0.0
                if most > 0:
                    found.append(_Guesser(run, job, speculator, most, job.guess(most, patience_s)))
        return found

    def _from_the_draft_model(self, drafter: Drafter, guessers: Sequence[_Guesser], load: Load) -> None:
        """Have the draft model guess for those whose text suggests nothing as good, where that pays."""
        costs = DraftCosts(self.speculation.costs.of, drafter.costs.of)
        sequences, beside_s = load.sequences, load.beside_s
        allowance_s = self.speculation.drafts.allowance_s(costs.target(sequences))
        if allowance_s <= 0:
            return
        asked: list[tuple[_Guesser, DraftOffer]] = []
        to_read: list[tuple[_Guesser, DraftOffer]] = []
        for each in guessers:
            offer = self._draft_offer(drafter, each)
            if offer is not None:
                (asked if offer.lag <= MAX_BEHIND else to_read).append((each, offer))
        for each, offer in to_read:
            seconds = drafter.costs.of(offer.lag)
            if reading_pays(
                offer, costs, seconds=seconds, sequences=sequences, beside_s=beside_s, allowance_s=allowance_s
            ):
                began_at_s = self._clock()
                drafter.read(each.run, max(_MIN_READ_TOKENS, int(offer.lag * _READ_S / seconds)))
                self._reading_s = self._clock() - began_at_s
                break
        counts = draft_lengths(
            [offer for _, offer in asked], costs, sequences=sequences, beside_s=beside_s, allowance_s=allowance_s
        )
        wanted = {each.run: count for (each, _), count in zip(asked, counts, strict=True) if count}
        if not wanted:
            return
        began_at_s = self._clock()
        drafted = drafter.draft(wanted)
        self._drafting_s = self._clock() - began_at_s
        share_s = self._drafting_s / max(1, len(drafted))
        for each, _ in asked:
            if (found := drafted.get(each.run)) is not None:
                each.guess = each.speculator.drafted(*found)
                each.speculator.drafting_s = share_s

    def _draft_offer(self, drafter: Drafter, each: _Guesser) -> DraftOffer | None:
        """A run as the draft model could guess for it; None where the text does as well."""
        rate = each.speculator.rate(DRAFTED)
        if each.guess is not None:
            ground = each.guess.grounds[0]
            if ground == FORCED or each.speculator.rate(ground) >= rate:
                return None
        behind = drafter.behind(each.run)
        if behind is None:
            return None
        return DraftOffer(
            rate=rate,
            compared=each.speculator.seen(DRAFTED),
            most=min(each.most, MAX_DRAFTED),
            lag=behind,
            left=each.job.guessable(_MANY_TOKENS),
        )
