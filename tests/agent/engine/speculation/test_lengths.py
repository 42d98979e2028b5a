"""How many guesses go into a step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.speculation.lengths import Account, Load, Offer, Places, Rates, guess_lengths
from moe2.agent.engine.speculation.ngrams import GROUNDS


def _linear(step_s: float, token_s: float) -> Callable[[int], float]:
    return lambda tokens: step_s + token_s * (tokens - 1)


def _lengths(
    *offers: Offer, token_s: float, sequences: int = 1, room: int = 60, waiting: int = 0, beside_s: float = 0.0
) -> list[int]:
    return guess_lengths(offers, Load(sequences, waiting, beside_s), seconds=_linear(1.0, token_s), room=room)


SURE, UNSURE = Offer([0.95] * 20, inf), Offer([0.3] * 20, inf)


def test_where_further_tokens_are_free_all_is_guessed() -> None:
    """As on a GPU that waits for its memory."""
    assert _lengths(SURE, token_s=0.0) == [20]


def test_a_doubtful_guess_does_not_pay_where_tokens_cost() -> None:
    """It is right in three of ten cases, and costs half a step."""
    assert _lengths(UNSURE, token_s=0.5) == [0]


def test_a_full_batch_guesses_less() -> None:
    """What one sequence guesses makes the step longer for all eight."""
    assert _lengths(SURE, token_s=0.1)[0] > _lengths(SURE, token_s=0.1, sequences=8)[0]


def test_beside_a_long_prompt_a_guess_costs_little() -> None:
    """The step is long anyway."""
    assert _lengths(UNSURE, token_s=0.5, beside_s=50.0)[0] > 0


def test_those_whose_prompts_are_read_wait_for_guesses_too() -> None:
    """Beside the prompts of seven others a sequence guesses less than beside one long prompt."""
    alone, among_others = (_lengths(SURE, token_s=0.1, beside_s=2.0, waiting=waiting)[0] for waiting in (1, 7))
    assert 0 < among_others < alone


def test_beside_prompts_guesses_yield_what_all_will_write_in_that_time() -> None:
    """Where a further token of a batch costs nearly what it does in a batch of all, only the surest guesses pay."""
    likely, sure = Offer([0.75] * 8, inf), Offer([1.0] * 8, inf)
    for offer, guesses in ((likely, False), (sure, True)):
        found = _lengths(offer, token_s=0.4, waiting=7, beside_s=8.0)[0]
        assert (found > 0) is guesses


def test_a_gain_that_is_small_for_each_sequence_is_none() -> None:
    """Eight sequences that each gain 1 % do not guess: what a step takes is not known so well."""
    one = Offer([0.51], inf)
    assert _lengths(*[one] * 8, token_s=0.5, sequences=8) == [0] * 8


@pytest.mark.parametrize(("token_s", "guesses"), [(0.1, True), (0.18, False)])
def test_what_four_of_eight_gain_has_to_be_more_than_what_all_wait(token_s: float, guesses: bool) -> None:
    """Logarithms of the gains add up to 2.67, those of what four tokens more take from all eight to 1.69 and 2.20: a
    small gain is lost again at the batch's end."""
    one = Offer([0.95], inf)
    assert _lengths(*[one] * 4, token_s=token_s, sequences=8) == [int(guesses)] * 4


def test_no_more_is_guessed_than_there_is_room() -> None:
    """All sequences together."""
    assert sum(_lengths(SURE, SURE, token_s=0.0, sequences=2, room=7)) == 7
    assert _lengths(SURE, token_s=0.0, room=0) == [0]


def test_no_more_is_guessed_than_may_be_lost() -> None:
    """An allowance of a sixth of a step is one token of a tenth."""
    assert _lengths(Offer([0.99] * 20, 0.16), token_s=0.1) == [1]
    assert _lengths(Offer([0.99] * 20, -0.1), token_s=0.1) == [0]


@pytest.mark.slow
@given(
    st.lists(st.lists(st.floats(0, 1), max_size=3), min_size=1, max_size=3),
    st.floats(0.01, 0.6),
    st.integers(0, 3),
)
def test_the_best_of_all_lengths_is_found(likely: list[list[float]], token_s: float, others: int) -> None:
    """Compared with trying all of them."""
    offers = [Offer(each, inf) for each in likely]
    sequences = len(offers) + others

    def value(counts: tuple[int, ...]) -> float:
        total = 0.0
        for each, count in zip(likely, counts, strict=True):
            expected = chance = 1.0
            for rate in each[:count]:
                chance *= rate
                expected += chance
            total += log(expected)
        taken = sequences * log((1 + token_s * (sequences - 1 + sum(counts))) / (1 + token_s * (sequences - 1)))
        return total - taken if sequences == 1 or total >= 1.25 * taken else 0.0

    best = max(map(value, product(*(range(len(each) + 1) for each in likely))))
    found = tuple(_lengths(*offers, token_s=token_s, sequences=sequences))
    assert value(found) >= best - 0.02 * sequences - 1e-4


def test_a_guess_that_never_holds_is_soon_known() -> None:
    """After five failures it is taken for less likely than one in three, whatever was thought before."""
    rates = Rates(lambda ground: 0.92)
    for _ in range(5):
        rates.learn(GROUNDS - 1, False)
    assert rates.of(GROUNDS - 1) < 0.5
    for _ in range(40):
        rates.learn(GROUNDS - 1, True)
    assert rates.of(GROUNDS - 1) > 0.95


def test_a_guess_behind_tokens_where_guesses_failed_is_less_likely() -> None:
    """Whatever guesses on its ground are; behind other tokens they are as likely as before."""
    places = Places()
    for _ in range(3):
        places.learn((1, 7), False)
        places.learn((1, 8), True)
    assert places.rate((1, 7), 0.9) < 0.35
    assert places.rate((1, 8), 0.9) > 0.95
    assert places.rate((1, 9), 0.9) == pytest.approx(0.9)
    for _ in range(20):
        places.learn((1, 7), True)
    assert places.rate((1, 7), 0.9) > 0.85


def test_a_token_that_follows_on_two_others_is_two_places() -> None:
    """A quotation mark before a name, where guesses hold, says little of one before a value, but something."""
    places = Places()
    for _ in range(6):
        places.learn((1, 7), True)
        places.learn((2, 7), False)
    assert places.rate((1, 7), 0.7) > 0.8
    assert places.rate((2, 7), 0.7) < 0.2
    assert places.rate((2, 7), 0.7) < places.rate((3, 7), 0.7) < places.rate((1, 7), 0.7)


def test_what_comes_in_any_case_needs_no_allowance() -> None:
    """What is guessed behind it does, for what it takes beyond that."""
    assert _lengths(Offer([1.0] * 3, -1.0, certain=3), token_s=0.1) == [3]
    assert _lengths(Offer([1.0] * 3 + [0.99] * 20, 0.16, certain=3), token_s=0.1) == [4]
    assert _lengths(Offer([1.0] * 3 + [0.99] * 20, -0.1, certain=3), token_s=0.1) == [3]
    assert _lengths(Offer([1.0], inf, certain=1), token_s=1.2) == [0]


def test_a_larger_batch_that_takes_less_is_found() -> None:
    """Four to six tokens take longer than seven here, and the allowance is enough for seven."""
    seconds = {1: 1.0, 2: 2.0, 3: 2.4, 4: 3.5, 5: 4.1, 6: 4.5, 7: 3.2, 8: 3.2}
    offer = Offer([0.98] * 7, 3.0)
    assert guess_lengths([offer], Load(1), seconds=seconds.__getitem__, room=7) == [7]


@pytest.mark.slow
@given(st.integers(1, 400), st.floats(0.001, 1))
def test_what_guesses_that_never_hold_can_cost_is_bounded(steps: int, token_s: float) -> None:
    """1.25 steps and 0.75 % of the time, however the guesser is misled and whatever a guess costs."""
    account, spent_s = Account(), 0.0
    for _ in range(steps):
        count = _lengths(Offer([1.0] * 20, account.allowance_s(1.0)), token_s=token_s)[0]
        account.settle(accepted=0, plain_s=1.0, taken_s=count * token_s, longer_s=count * token_s)
        spent_s += 1.0 + count * token_s
    assert spent_s - steps <= 1.25 + 0.0075 * spent_s + 1e-9


def test_what_held_without_being_tried_may_be_tried() -> None:
    """Three steps more may be lost where suggestions held on end; none where every second one did not."""
    account = Account()
    first_s = account.allowance_s(1.0)
    for at in range(40):
        account.foresaw(at % 2 == 0)
    assert account.allowance_s(1.0) <= first_s + 0.15
    for _ in range(100):
        account.foresaw(True)
    assert account.allowance_s(1.0) == pytest.approx(first_s + 3)


def test_in_a_batch_of_eight_a_guess_takes_from_all_of_them() -> None:
    """An allowance that is enough for eight guesses of a sequence alone is enough for one beside seven others."""
    offer = Offer([0.99] * 20, 0.085)
    assert _lengths(offer, token_s=0.01) == [8]
    assert _lengths(offer, token_s=0.01, sequences=8) == [1]


def test_what_was_gained_may_be_lost_again() -> None:
    """Guesses that held pay for those that do not."""
    account = Account()
    before_s = account.allowance_s(1.0)
    account.settle(accepted=3, plain_s=1.0, taken_s=0.5, longer_s=0.5)
    assert account.allowance_s(1.0) == pytest.approx(before_s + 2.5 + 0.0075 * 1.5)
