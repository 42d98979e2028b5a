"""A draft model's guesses: its cache in step with the text, answers as without, asked only where it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.agent.engine.decoding.batch import DecodeOutcome, Run
from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.drafting import Drafter
from moe2.agent.engine.protocol import Finished
from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.speculation import Speculation
from moe2.common.link.messages import Submit
from tests.agent.engine.decoding.letterjobs import letter_job
from tests.agent.engine.simulation import Engine, SimulatedCache, logits_after

_STEP_S = 0.01


def says(tokens: Sequence[int]) -> Logits:
    """A model whose text never repeats for long, so that nothing but a draft model can guess it."""
    return logits_after(tokens)


def agrees(tokens: Sequence[int]) -> Logits:
    """A draft model that is sure of what the model says, and wrong after every seventh length."""
    logits = logits_after(tokens) * 8
    if len(tokens) % 7 == 0:
        logits = np.roll(logits, 1)
    return logits


def disagrees(tokens: Sequence[int]) -> Logits:
    """A draft model that is sure of something else than what the model says."""
    return np.roll(logits_after(tokens) * 8, 1)


def seconds(first: float, further: float) -> Callable[[int], float]:
    """What a step takes by its tokens: of the first, and of each further one, in steps of the model."""
    return lambda tokens: _STEP_S * (first + further * (tokens - 1))


def engine(
    draft_says: Callable[[Sequence[int]], Logits] | None,
    *,
    token: float = 0.05,
    draft: float = 0.1,
    slots: int = 3,
    cells: int = 900,
    draft_cells: int | None = None,
) -> Engine:
    """token: what a further token of the batch takes beside the first. draft: what a step of the draft model takes."""
    return Engine(
        slots=slots,
        cells=cells,
        batch_tokens=64,
        says=says,
        endless=True,
        speculation=Speculation(StepCosts(step_s=_STEP_S, token_s=_STEP_S * token)),
        seconds=seconds(1, token),
        draft_says=draft_says,
        draft_seconds=seconds(draft, draft * token),
        draft_cells=draft_cells,
    )


def submit(job_id: str, text: str = "qwertz", *, most: int = 150) -> Submit:
    return letter_job(job_id, text, max_tokens=most)


def ended(of: Engine, job_id: str) -> Finished:
    end = of.end(job_id)
    assert isinstance(end, Finished)
    return end


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.text("abcd", min_size=1, max_size=30), st.integers(1, 40)), min_size=1, max_size=6),
    st.sampled_from([agrees, disagrees]),
    st.sampled_from([None, 20, 60]),
    st.integers(0, 30),
)
def test_answers_are_those_without_a_draft_model(
    asked: list[tuple[str, int]],
    draft_says: Callable[[Sequence[int]], Logits],
    draft_cells: int | None,
    cancelled_after: int,
) -> None:
    """Several at once, one of them cancelled, with any room in the draft model's cache; a token that it would miss or
    keep wrongly fails the simulated cache."""
    texts = []
    for each in (None, draft_says):
        of = engine(each, draft_cells=draft_cells)
        of.decoder.submit(submit("gone", "abcabc"))
        for at, (text, most) in enumerate(asked):
            of.decoder.submit(submit(str(at), text, most=most))
        for _ in range(cancelled_after):
            of.decoder.step()
        of.decoder.cancel("gone")
        of.run()
        texts.append([of.text(str(at)) for at in range(len(asked))])
    assert texts[0] == texts[1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(1, 26), max_size=20)), min_size=1, max_size=12))
def test_guesses_follow_on_the_text_as_it_is(changes: list[tuple[int, list[int]]]) -> None:
    """Whatever was guessed before and whatever was written instead, the next guess is what the draft model says."""
    cache = SimulatedCache(10_000, says=agrees)
    drafter = Drafter(
        cache,
        lanes=1,
        batch_tokens=64,
        most_tokens=5000,
        cuts_anywhere=True,
        clock=lambda: 0.0,
        costs=StepCosts(step_s=1.0, token_s=1.0),
    )
    run = Run(lane=0, tokens=[1, 2, 3], filled=0, logits_from=2, reserved=1000)
    for count, written in changes:
        if count:
            tokens, probabilities = drafter.draft({run: count})[run]
            expected = list(run.tokens)
            for token in tokens:
                assert token == int(np.argmax(agrees(expected)))
                expected.append(token)
            assert len(tokens) == len(probabilities) == count
        run.tokens += written
        drafter.read(run, 7)


def test_a_prompt_that_begins_alike_is_not_read_again() -> None:
    """The lane of the answer before is cut back to what both prompts have in common."""
    cache = SimulatedCache(1000, says=agrees)
    costs = StepCosts(step_s=1.0, token_s=1.0)
    drafter = Drafter(
        cache, lanes=2, batch_tokens=64, most_tokens=500, cuts_anywhere=True, clock=lambda: 0.0, costs=costs
    )
    first, second = (
        Run(lane=at, tokens=[*range(1, 21), at + 1], filled=0, logits_from=20, reserved=100) for at in range(2)
    )
    drafter.draft({first: 3})
    drafter.end(first)
    assert drafter.behind(second) == 1
    assert drafter.draft({second: 2})[second][0][0] == int(np.argmax(agrees(second.tokens)))


def test_a_cache_that_fails_ends_all_drafting() -> None:
    """The model's own answers go on."""
    of = engine(agrees)
    of.decoder.submit(submit("j"))
    for _ in range(20):
        of.decoder.step()
    assert of.draft_cache is not None
    of.draft_cache.fails_with = DecodeOutcome.FAILED
    of.run()
    plain = engine(None)
    plain.decoder.submit(submit("j"))
    plain.run()
    assert of.text("j") == plain.text("j")


def test_a_draft_model_that_agrees_saves_time() -> None:
    """Its guesses are counted apart from those of the text."""
    of, plain = engine(agrees), engine(None)
    for each in (of, plain):
        each.decoder.submit(submit("j"))
        each.run()
    assert of.text("j") == plain.text("j")
    assert of.now_s < 0.6 * plain.now_s
    end = ended(of, "j")
    assert end.model_drafted_tokens
    assert end.model_accepted_tokens
    assert end.model_drafted_tokens <= (end.drafted_tokens or 0)
    assert end.model_accepted_tokens > 0.4 * end.model_drafted_tokens


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("text", ["qwertz", "qwertzuiop" * 20])
@pytest.mark.parametrize(
    ("draft_says", "draft", "token"), [(disagrees, 0.1, 0.05), (disagrees, 0.5, 0.3), (agrees, 1.0, 0.4)]
)
def test_a_draft_model_that_does_not_pay_costs_at_most_three_percent(
    draft_says: Callable[[Sequence[int]], Logits], draft: float, token: float, text: str, jobs: int
) -> None:
    """One that is wrong, or right and as slow as the model; the first answers after loading, with short and long
    prompts."""
    took_s = []
    for each in (None, draft_says):
        of = engine(each, draft=draft, token=token)
        for at in range(jobs):
            of.decoder.submit(submit(str(at), text, most=200))
        of.run()
        took_s.append(of.now_s)
    assert took_s[1] <= 1.03 * took_s[0]


def test_a_draft_model_as_slow_as_its_model_is_never_asked() -> None:
    """However right it is: no step of it is taken, not even for a trial."""
    of = engine(agrees, draft=0.95, token=0.5)
    of.decoder.submit(submit("j"))
    of.run()
    assert of.draft_cache is not None
    assert of.draft_cache.decoded_tokens == 0
    assert ended(of, "j").model_drafted_tokens is None


@pytest.mark.slow
def test_a_long_prompt_is_read_once_it_is_known_to_pay() -> None:
    """Short answers have shown it: then 400 tokens are read for an answer of 300, and it is faster."""
    of, plain = engine(agrees, slots=1), engine(None, slots=1)
    took_s = []
    for each in (of, plain):
        for at in range(3):
            each.decoder.submit(submit(str(at)))
        each.run()
        began_s = each.now_s
        each.decoder.submit(submit("long", "qwertzuiop" * 40, most=300))
        each.run()
        took_s.append(each.now_s - began_s)
    assert took_s[0] < 0.8 * took_s[1]
    assert of.text("long") == plain.text("long")
