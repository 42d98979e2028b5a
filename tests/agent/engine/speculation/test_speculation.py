"""What a model's sequences share: when a step without guesses is measured, and what guesses are charged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.lengths import Load
from moe2.agent.engine.speculation.ngrams import FORCED, LONGEST_COPY, SPELLED
from moe2.agent.engine.speculation.speculation import Speculation, Speculator, Step

_TEXT = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12] * 4


def _speculation(token_s: float = 0.001) -> Speculation:
    """A step takes 0.1 s, and each further token of it so much."""
    return Speculation(StepCosts(step_s=0.1, token_s=token_s))


def _step(speculation: Speculation, speculators: Sequence[Speculator], seconds: float = 0.1) -> list[int]:
    """How many tokens each guesses in a step, all of them right."""
    guesses = [speculator.guess(8) for speculator in speculators]
    pairs = [(each, guess) for each, guess in zip(speculators, guesses, strict=True) if guess is not None]
    counts = speculation.lengths(pairs, Load(len(speculators)), room=60)
    for (speculator, guess), count in zip(pairs, counts, strict=True):
        for token in [*guess.tokens[:count], guess.tokens[count] if count < len(guess.tokens) else 3]:
            speculator.drew(token)
    speculation.settle(
        [(each, count, count) for (each, _), count in zip(pairs, counts, strict=True)],
        Step(len(speculators), seconds=seconds),
    )
    return counts


def test_a_step_without_guesses_is_measured_at_first_and_now_and_then() -> None:
    """Of guesses that always hold, 32 steps are made between two without any."""
    speculation = _speculation()
    speculator = speculation.speculator(_TEXT)
    plain = [at for at in range(100) if _step(speculation, [speculator]) == [0]]
    assert plain == [0, 33, 66, 99]


def test_with_another_number_of_sequences_a_step_without_guesses_is_measured() -> None:
    """What it takes was not measured yet; but one step in 16 is enough, however often the number changes."""
    speculation = _speculation()
    speculators = [speculation.speculator(_TEXT) for _ in range(8)]
    for _ in range(20):
        _step(speculation, speculators[:1])
    assert _step(speculation, speculators[:3]) == [0, 0, 0]
    plain = sum(not any(_step(speculation, speculators[: 1 + at % 8])) for at in range(160))
    assert 2 <= plain <= 10


def test_beside_prompts_no_step_is_measured_and_none_is_without_guesses() -> None:
    """A step's time says nothing where prompts are read in it."""
    speculation = _speculation()
    speculator = speculation.speculator(_TEXT)
    guess = speculator.guess(8)
    assert guess is not None
    assert speculation.lengths([(speculator, guess)], Load(1, waiting=1, beside_s=0.2), room=60)[0] > 0
    before_s = speculation.costs.of(9)
    speculation.settle([(speculator, 8, 8)], Step(1, waiting=1, seconds=None))
    assert speculation.costs.of(9) == before_s


@pytest.mark.parametrize(("seconds", "gains"), [(0.15, True), (0.6, False)])
def test_guesses_are_charged_what_steps_took(seconds: float, gains: bool) -> None:
    """Two guesses that are right save two steps, and lose where their step takes as long as six."""
    speculation = _speculation()
    speculator = speculation.speculator(_TEXT)
    for _ in range(20):
        speculation.settle([(speculator, 0, 0)], Step(1, seconds=0.1))
        speculation.settle([(speculator, 2, 2)], Step(1, seconds=seconds))
    assert (speculator.account.gained_s > 0) is gains


def test_a_step_that_was_held_up_costs_its_guesses_little() -> None:
    """Another process may stop the engine for a second."""
    speculation = _speculation()
    speculator = speculation.speculator(_TEXT)
    for _ in range(20):
        speculation.settle([(speculator, 0, 0)], Step(1, seconds=0.1))
        speculation.settle([(speculator, 2, 2)], Step(1, seconds=0.1))
    before_s = speculator.account.gained_s
    speculation.settle([(speculator, 2, 2)], Step(1, seconds=1.0))
    assert speculator.account.gained_s > before_s


def test_what_is_never_copied_is_not_guessed() -> None:
    """Behind a token where each line of a copy differed from the one before, guesses are taken for wrong."""
    speculation = _speculation()
    lines = [[3, 4, 5, 6, 20 + at, 7, 8, 9, 10] for at in range(6)]
    speculator = speculation.speculator(lines[0])
    for line in lines[1:]:
        for token in line:
            speculator.guess(8)
            speculator.drew(token)
    for token in lines[1][:2]:
        speculator.guess(8)
        speculator.drew(token)
    guess = speculator.guess(8)
    assert guess is not None
    assert guess.tokens[:2] == [5, 6]
    likely = speculator.offer(guess, 0.1).likely
    assert likely[0] > 0.8
    assert likely[2] < 0.5


def test_text_without_a_choice_is_gone_on_behind() -> None:
    """What comes in any case is sure and needs no allowance; behind it stands what followed the last time."""
    speculator = Speculation(StepCosts(step_s=1.0, token_s=0.3)).speculator([1, 2, 3, 4, 5, 1])
    guess = speculator.suppose([2, 3], [9], 4)
    assert guess.tokens == [2, 3, 4, 5]
    assert guess.grounds[:2] == [FORCED, FORCED]
    assert FORCED not in guess.grounds[2:]
    offer = speculator.offer(guess, 1.0)
    assert offer.certain == 2
    assert list(offer.likely[:2]) == [1.0, 1.0]
    assert offer.likely[2] < 1.0
    assert speculator.suppose([2, 3], [9], 1).tokens == [2]


def test_the_last_token_of_such_a_text_is_guessed_where_the_answer_says_nothing() -> None:
    """It may be the beginning of a longer one, and is trusted as far as it was right."""
    speculator = Speculation(StepCosts(step_s=1.0, token_s=0.3)).speculator([1, 9, 4, 5])
    guess = speculator.suppose([7], [9], 3)
    assert guess.tokens == [7, 9]
    assert guess.grounds == [FORCED, SPELLED]
    assert speculator.suppose([], [9], 3).tokens == [9]
    trusted = speculator.offer(guess, 1.0).likely[1]
    for known in range(20, 26):
        speculator.suppose([known], [9], 3)
        speculator.drew(known)
        speculator.drew(8)
    assert speculator.offer(speculator.suppose([7], [9], 3), 1.0).likely[1] < trusted / 2


_FILE = [100 + 7 * at % 90 if at % 12 else 5 for at in range(84)]
"""A text in which every twelfth token is 5; what stands between is nowhere twice."""
_EDITED = [6 if token == 5 else token for token in _FILE]


def test_a_copy_that_the_prompt_has_begun_goes_on_in_the_answer_with_what_it_replaced() -> None:
    """Before a token is drawn, all of the rest is suggested, and as sure as copies are that have held for long."""
    speculator = _speculation().speculator([*_FILE, 1, *_EDITED[:50]])
    guess = speculator.guess(31)
    assert guess is not None
    assert guess.tokens == _EDITED[50:81]
    assert min(speculator.offer(guess, 1.0).likely) > 0.8


def test_a_long_copy_in_the_prompt_lets_its_first_guess_take_more_steps() -> None:
    """A short one does not: it may end with the prompt."""
    allowed_s = []
    for copied in (LONGEST_COPY // 2, LONGEST_COPY * 2):
        speculator = _speculation().speculator([*_FILE, 1, *_FILE[:copied]])
        guess = speculator.guess(8)
        assert guess is not None
        allowed_s.append(speculator.offer(guess, 1.0).allowance_s)
    plain = _speculation().speculator(_FILE).account.allowance_s(1.0)
    assert allowed_s[0] == plain
    assert allowed_s[1] > 2 * plain


def test_how_a_list_s_rows_differ_says_nothing_about_its_copy() -> None:
    """Each row repeats the one before with other numbers; the copy at the prompt's end repeats the list, and has 9 in
    place of 8."""
    rows = [[20 + row, 1, 2, 3, 4, 5, 40 + row, 6, 7, 11, 12, 13, 60 + row, 14, 15, 16, 8] for row in range(8)]
    text = [token for row in rows for token in row]
    edited = [9 if token == 8 else token for token in text]
    guess = _speculation().speculator([*text, 10, *edited[:54]]).guess(31)
    assert guess is not None
    assert guess.tokens == edited[54:85]


def test_a_prompt_without_repetition_teaches_nothing() -> None:
    """An answer to it begins with what the model's requests have in common."""
    speculation = _speculation()
    speculator = speculation.speculator(_FILE)
    assert speculator.guess(8) is None
    assert [speculator.rate(ground) for ground in range(5)] == [speculation.rates.of(ground) for ground in range(5)]
