"""Mixing next-token distributions and drawing from them: against values worked out by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.generation import Sampling
from moe2.common.link.messages import Candidate
from moe2.coordinator.serving.modes.token_mixture import TokenDraw, TokenMixture, mix_tokens


def named(**probabilities: float) -> list[Candidate]:
    """Candidates by name, a = token 0: as an agent lists them, best first."""
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    return [Candidate(ord(name) - 97, math.log(mass), name.encode(), name == "z") for name, mass in ranked]


def masses(mixture: TokenMixture) -> dict[str, float]:
    return {candidate.piece.decode(): math.exp(candidate.logprob) for candidate in mixture.best(9)}


def drawn(mixture: TokenMixture, count: int = 400, **sampling: float) -> Counter[str]:
    draws = TokenDraw(Sampling(**sampling), seed=1)  # type: ignore[arg-type]
    return Counter(draws.draw(mixture).piece.decode() for _ in range(count))


# --- The mixture ------------------------------------------------------------------------------------------------------


def test_the_mixture_is_the_weighted_sum() -> None:
    """0.75 (a 0.5, b 0.4) + 0.25 (b 0.8, c 0.1); what is not named is carried."""
    mixture = mix_tokens([named(a=0.5, b=0.4), named(b=0.8, c=0.1)], [0.75, 0.25])
    assert masses(mixture) == pytest.approx({"b": 0.5, "a": 0.375, "c": 0.025})
    assert list(masses(mixture)) == ["b", "a", "c"]
    assert mixture.remainder == pytest.approx(0.75 * 0.1 + 0.25 * 0.1)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8), st.integers(1, 4))
def test_identical_members_are_one(raw: list[int], members: int) -> None:
    """Their mixture is the one distribution, in the same order."""
    total = sum(raw) * 1.1
    alone = sorted((Candidate(n, math.log(x / total), b"", False) for n, x in enumerate(raw)), key=lambda c: -c.logprob)
    one = mix_tokens([alone], [1.0])
    several = mix_tokens([alone] * members, [1 / members] * members)
    assert one.tokens.tolist() == several.tokens.tolist() == [c.token for c in alone]
    assert several.logprobs.tolist() == pytest.approx(one.logprobs.tolist())
    assert several.remainder == pytest.approx(one.remainder)


def test_equally_likely_tokens_are_ordered_by_their_number() -> None:
    """As an argmax over the vocabulary takes the first."""
    mixture = mix_tokens([named(a=0.5, b=0.25), named(b=0.5, a=0.25)], [0.5, 0.5])
    assert list(masses(mixture)) == ["a", "b"]


# --- The draw ---------------------------------------------------------------------------------------------------------

WIDE = mix_tokens([named(a=0.5, b=0.25, c=0.125)], [1.0])


def test_temperature_0_takes_the_best() -> None:
    """Always."""
    assert drawn(WIDE, 20, temperature=0.0) == {"a": 20}


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """4 : 2 : 1 among the named, within three standard errors."""
    counts = drawn(WIDE, 7000)
    for name, share in (("a", 4 / 7), ("b", 2 / 7), ("c", 1 / 7)):
        assert counts[name] == pytest.approx(7000 * share, abs=3 * math.sqrt(7000 * share * (1 - share)))


def test_a_low_temperature_sharpens() -> None:
    """At 0.5 the odds are squared: 16 : 4 : 1."""
    counts = drawn(WIDE, 7000, temperature=0.5)
    assert counts["a"] / 7000 == pytest.approx(16 / 21, abs=0.016)


def test_the_same_seed_draws_the_same_tokens() -> None:
    """And another seed others."""
    texts = []
    for seed in (7, 7, 8):
        draws = TokenDraw(Sampling(), seed)
        texts.append([draws.draw(WIDE).token for _ in range(50)])
    assert texts[0] == texts[1] != texts[2]


def test_top_k_and_min_p_cut_the_tail() -> None:
    """The two best; and what has at least 0.4 of the best."""
    assert set(drawn(WIDE, top_k=2)) == {"a", "b"}
    assert set(drawn(WIDE, min_p=0.4)) == {"a", "b"}


def test_top_p_counts_the_remainder() -> None:
    """0.5 and 0.25 of the whole, not of the 0.875 that are named: only 0.76 of the whole needs c as well."""
    assert set(drawn(WIDE, top_p=0.5)) == {"a"}
    assert set(drawn(WIDE, top_p=0.74)) == {"a", "b"}
    assert set(drawn(WIDE, top_p=0.76)) == {"a", "b", "c"}


def test_a_bias_rules_a_token_out() -> None:
    """-100 is as good as never."""
    draws = TokenDraw(Sampling(logit_bias={0: -100.0}), seed=1)
    assert {draws.draw(WIDE).piece for _ in range(50)} == {b"b", b"c"}


def test_penalties_grow_with_what_was_drawn() -> None:
    """From ln 0.5, 0.25, 0.125 a presence of 1 is paid once (a, b, then a for good), a frequency each time."""
    present = TokenDraw(Sampling(temperature=0.0, presence_penalty=1.0), seed=1)
    assert [present.draw(WIDE).piece for _ in range(4)] == [b"a", b"b", b"a", b"a"]
    frequent = TokenDraw(Sampling(temperature=0.0, frequency_penalty=1.0), seed=1)
    assert [frequent.draw(WIDE).piece for _ in range(4)] == [b"a", b"b", b"a", b"c"]
