"""Whether a draft model is asked, for whom, and for how many tokens."""

from __future__ import annotations

from math import inf

from moe2.agent.engine.speculation.drafts import DraftCosts, DraftOffer, draft_lengths, reading_pays


def _costs(draft: float, token: float = 0.02) -> DraftCosts:
    """In steps of the model: of one step of the draft model, and of a further token in the model's batch."""
    return DraftCosts(
        target=lambda tokens: 1 + token * (tokens - 1), draft=lambda tokens: draft * (1 + token * (tokens - 1))
    )


def _offer(rate: float = 0.8, *, compared: float = 50, most: int = 8, lag: int = 1, left: int = 100) -> DraftOffer:
    return DraftOffer(rate=rate, compared=compared, most=most, lag=lag, left=left)


def _lengths(*offers: DraftOffer, draft: float, sequences: int = 1, allowance_s: float = inf) -> list[int]:
    return draft_lengths(offers, _costs(draft), sequences=sequences, beside_s=0.0, allowance_s=allowance_s)


def test_a_fast_draft_model_that_is_often_right_guesses_several() -> None:
    """The more often it is right, the more."""
    few, many = _lengths(_offer(0.6), draft=0.1)[0], _lengths(_offer(0.9), draft=0.1)[0]
    assert 1 <= few < many


def test_a_draft_model_that_takes_as_long_is_not_asked() -> None:
    """Nor one that is nearly always wrong, nor where nobody may guess."""
    assert _lengths(_offer(0.95), draft=0.95) == [0]
    assert _lengths(_offer(0.05), draft=0.1) == [0]
    assert _lengths(_offer(0.95, most=0), draft=0.1) == [0]
    assert _lengths(draft=0.1) == []


def test_a_trial_asks_for_one_token_where_it_could_pay() -> None:
    """Whatever was measured of other answers; and for none where even right guesses would not pay."""
    assert _lengths(_offer(0.1, compared=0), draft=0.1) == [1]
    assert _lengths(_offer(0.9, compared=0), draft=0.95) == [0]


def test_only_those_that_gain_are_guessed_for() -> None:
    """All others wait for it."""
    counts = _lengths(_offer(0.005), _offer(0.9), _offer(0.005), draft=0.1, sequences=3)
    assert counts[1] > 0
    assert (counts[0], counts[2]) == (0, 0)


def test_what_may_be_lost_is_a_bound() -> None:
    """Nobody is asked for more than the allowance pays."""
    assert _lengths(_offer(0.9), draft=0.1, allowance_s=0.05) == [0]
    assert _lengths(_offer(0.9), _offer(0.9), draft=0.1, sequences=2, allowance_s=-1.0) == [0, 0]


def test_much_is_read_only_for_a_long_answer() -> None:
    """Reading a long prompt takes what a short answer never brings back."""
    for left, pays in ((4, False), (200, True)):
        offer = _offer(0.9, lag=500, left=left)
        assert reading_pays(offer, _costs(0.1), seconds=5.0, sequences=1, beside_s=0.0, allowance_s=100.0) is pays, left
    assert not reading_pays(_offer(0.9), _costs(0.1), seconds=5.0, sequences=1, beside_s=0.0, allowance_s=4.0)
    assert not reading_pays(
        _offer(0.9, compared=0), _costs(0.99), seconds=1.0, sequences=1, beside_s=0.0, allowance_s=4.0
    )
