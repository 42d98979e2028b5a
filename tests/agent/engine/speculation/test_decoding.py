"""Decoding with guesses over a simulated model: what is written is what is written without."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.drawing import Draw
from moe2.agent.engine.protocol import Finished, Guessed, JobFailed, Scored
from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.speculation import Speculation
from moe2.common.generation import Sampling
from moe2.common.link.messages import ScoreJob, Submit, Tokens
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.simulation import Engine, SimulatedCache, logits_after

LETTERS = st.text("abcd", min_size=1, max_size=24)


def free_guesses() -> Speculation:
    """Guesses cost nothing: as many are made as there are."""
    return Speculation(StepCosts(step_s=0.001, token_s=0.0))


def submit(job_id: str, text: str, *, max_tokens: int | None = 40, stop: tuple[str, ...] = (), seed: int = 0) -> Submit:
    return Submit(
        request_id="r",
        model="m",
        job_id=job_id,
        prompt=TextPrompt(text=text),
        sampling=Sampling(temperature=0, seed=seed),
        max_tokens=max_tokens,
        stop=stop,
        logprobs=2,
    )


def repeats(tokens: Sequence[int]) -> Logits:
    """A model that mostly repeats what stood three tokens before, and sometimes not."""
    logits = logits_after(tokens)
    if len(tokens) >= 3 and sum(tokens) % 5:
        logits[tokens[-3]] += 9
    return logits


class SeededDraw:
    """Draws with the request's seed, one random number for each token, like llama.cpp's chains."""

    is_ready = True

    def __init__(self, cache: SimulatedCache, seed: int) -> None:
        self._cache = cache
        self._random = np.random.default_rng(seed)

    def sample(self, place: int) -> int:
        return self.sample_kept(self._cache.logits(place))

    def sample_kept(self, logits: Logits) -> int:
        masses = np.exp(logits - logits.max())
        return int(self._random.choice(len(logits), p=masses / masses.sum()))

    def close(self) -> None:
        pass


def seeded(request: Submit, cache: SimulatedCache) -> Draw:
    return SeededDraw(cache, request.sampling.seed or 0)


def answers(engine: Engine, jobs: Sequence[Submit]) -> dict[str, tuple[object, ...]]:
    """(pieces, reason, stop, decoded tokens) by job, all of them run together."""
    for job in jobs:
        engine.decoder.submit(job)
    engine.run()
    pieces: dict[str, list[object]] = {job.job_id: [] for job in jobs}
    for event in engine.events:
        if isinstance(event, Tokens):
            for each in event.jobs:
                pieces[each.job_id] += each.pieces
    ends = {job.job_id: engine.end(job.job_id) for job in jobs}
    found: dict[str, tuple[object, ...]] = {}
    for job_id, end in ends.items():
        assert isinstance(end, Finished)
        found[job_id] = (pieces[job_id], end.reason, end.stop, end.decoded_tokens)
    return found


def counts(engine: Engine, job_id: str = "j") -> tuple[int, int]:
    """(drafted, accepted) tokens of a job that has ended, which are those of its steps."""
    end = engine.end(job_id)
    assert isinstance(end, Finished)
    assert end.drafted_tokens is not None
    assert end.accepted_tokens is not None
    steps = [each for event in engine.events if isinstance(event, Guessed) for each in event.jobs]
    told = [each for each in steps if each.job_id == job_id]
    assert sum(each.drafted for each in told) == end.drafted_tokens
    assert sum(each.accepted for each in told) == end.accepted_tokens
    return end.drafted_tokens, end.accepted_tokens


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.lists(LETTERS, min_size=1, max_size=5),
    st.integers(1, 40),
    st.sampled_from([(), ("ab",), ("a", "bcb")]),
    st.booleans(),
    st.sampled_from([4, 16, 64]),
)
def test_answers_are_those_without_guesses(
    texts: list[str], most: int, stop: tuple[str, ...], draws: bool, batch_tokens: int
) -> None:
    """Text, scores, stop strings, limits and counts of several sequences together, greedy and with seeds."""
    jobs = [submit(str(at), text, max_tokens=most, stop=stop, seed=at) for at, text in enumerate(texts)]
    new_draw = seeded if draws else None
    size = {"cells": 400, "batch_tokens": batch_tokens, "says": repeats, "new_draw": new_draw}
    with_guesses = answers(Engine(speculation=free_guesses(), **size), jobs)  # type: ignore[arg-type]
    assert with_guesses == answers(Engine(**size), jobs)  # type: ignore[arg-type]


def test_guesses_that_hold_save_steps_and_are_counted() -> None:
    """An answer that repeats its prompt takes a part of the steps; both counts are the job's."""
    job = submit("j", "abcabcabc", max_tokens=60)
    plain, guessing = (
        Engine(cells=200, batch_tokens=64, says=repeats, endless=True, speculation=each)
        for each in (None, free_guesses())
    )
    answers(plain, [job])
    answers(guessing, [job])
    assert guessing.steps < plain.steps / 2
    end = guessing.end("j")
    drafted, accepted = counts(guessing)
    assert isinstance(end, Finished)
    assert end.decoded_tokens == 60
    assert 0 < accepted <= drafted
    assert guessing.steps + accepted == plain.steps


def test_other_work_of_the_host_changes_nothing_about_guesses() -> None:
    """Steps that others hold up by nothing to ten times their time: what steps take is learned by processor time."""
    found = []
    for most_s in (0.0, 10.0):
        chance = Random(5)
        speculation = Speculation(StepCosts(step_s=1.0, token_s=0.1))
        engine = Engine(
            cells=512,
            batch_tokens=64,
            says=repeats,
            endless=True,
            seconds=lambda n: 1 + 0.1 * (n - 1),
            held_up_s=lambda _, most_s=most_s, chance=chance: chance.uniform(0, most_s),  # type: ignore[misc]
            speculation=speculation,
        )
        engine.decoder.submit(submit("j", "abcabcabc", max_tokens=120))
        engine.run()
        costs = [speculation.costs.of(n) / speculation.costs.of(1) for n in (2, 4, 8)]
        found.append((counts(engine), engine.steps, costs))
    assert found[0][0][1] > 40
    assert found[0][:2] == found[1][:2]
    assert found[0][2] == pytest.approx(found[1][2])


def test_a_divided_cache_guesses_only_for_who_is_alone() -> None:
    """Parts of different lengths would take a pass through the model each. Once the other one has ended it guesses."""
    engine = Engine(cells=256, says=repeats, endless=True, speculation=free_guesses(), kv_unified=False)
    engine.decoder.submit(submit("j", "abcabcabc", max_tokens=80))
    engine.decoder.submit(submit("other", "bcdbcdbcd", max_tokens=6))
    while not any(isinstance(event, Finished) for event in engine.events):
        engine.decoder.step()
    assert not any(isinstance(event, Guessed) for event in engine.events)
    engine.run()
    drafted, accepted = counts(engine)
    assert drafted >= accepted > 0


def test_wrong_guesses_leave_the_cache() -> None:
    """After an answer the cache holds the prompt and what was written of it, and not one cell more."""
    engine = Engine(cells=200, batch_tokens=64, says=repeats, endless=True, speculation=free_guesses())
    answers(engine, [submit("j", "abcabcabc", max_tokens=30)])
    drafted, accepted = counts(engine)
    assert drafted > accepted
    assert engine.cache.used == 9 + 30 - 1


def test_a_cache_that_cannot_give_back_ends_all_guessing() -> None:
    """What was known is read again, and the answer is the same."""
    job = submit("j", "abcabcabc", max_tokens=30)
    size = {"cells": 200, "batch_tokens": 64, "says": repeats, "endless": True}
    engine = Engine(speculation=free_guesses(), gives_back=False, **size)  # type: ignore[arg-type]
    found = answers(engine, [job])
    assert found == answers(Engine(**size), [job])  # type: ignore[arg-type]
    assert 0 < counts(engine)[0] < 31


def test_a_full_cache_ends_answers_where_it_does_without_guesses() -> None:
    """Guesses lie in cells that nobody has reserved, and take none from others."""
    jobs = [submit(name, "abcabc", max_tokens=None) for name in "xy"]
    size = {"cells": 60, "slots": 2, "batch_tokens": 64, "says": repeats, "endless": True}
    found = answers(Engine(speculation=free_guesses(), **size), jobs)  # type: ignore[arg-type]
    assert found == answers(Engine(**size), jobs)  # type: ignore[arg-type]


def test_a_cancelled_job_gives_its_guesses_back() -> None:
    """The cancellation takes effect before the next step; another job goes on unharmed."""
    size = {"cells": 400, "batch_tokens": 64, "says": repeats, "endless": True}
    engine = Engine(speculation=free_guesses(), **size)  # type: ignore[arg-type]
    engine.decoder.submit(submit("gone", "abcabcabc", max_tokens=100))
    engine.decoder.submit(submit("stays", "bcdbcd", max_tokens=40))
    for _ in range(4):
        engine.decoder.step()
    engine.decoder.cancel("gone")
    end = engine.end("gone")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens < 100) == ("cancelled", True)
    engine.run()
    alone = Engine(**size)  # type: ignore[arg-type]
    answers(alone, [submit("stays", "bcdbcd", max_tokens=40)])
    assert engine.text("stays") == alone.text("stays")


def test_who_reads_the_prompt_anew_neither_guesses_nor_teaches() -> None:
    """`cache_prompt = false` keeps an answer out of all that requests share."""
    speculation = free_guesses()
    engine = Engine(cells=200, batch_tokens=64, says=repeats, endless=True, speculation=speculation)
    answers(engine, [replace(submit("j", "abcabcabc", max_tokens=30), cache_prompt=False)])
    end = engine.end("j")
    assert isinstance(end, Finished)
    assert end.drafted_tokens is None
    assert len(speculation.ngrams) == 0


def test_scores_are_those_without_guesses() -> None:
    """Continuations that are scored beside an answer that guesses."""
    found = []
    for speculation in (None, free_guesses()):
        engine = Engine(cells=300, batch_tokens=64, says=repeats, endless=True, speculation=speculation)
        engine.decoder.submit(submit("w", "abcabcabc", max_tokens=30))
        engine.decoder.submit(
            ScoreJob(
                request_id="r", model="m", job_id="s", prompt=TextPrompt(text="abcabc"), continuations=("abcab", "dd")
            )
        )
        engine.run()
        found.append([event.scores for event in engine.events if isinstance(event, Scored)])
    assert found[0] == found[1]
    assert not any(isinstance(event, JobFailed) for event in engine.events)
