"""Log-probabilities from raw logits."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moe2.agent.engine.decoding.distribution import logprob, most_likely, nucleus

_LOGITS = arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False))


@given(_LOGITS, st.integers(0, 1000))
def test_logprob_is_the_log_softmax(logits: np.ndarray, at: int) -> None:
    """Equal to scipy's log-softmax in double precision, for any magnitude."""
    token = at % len(logits)
    expected = scipy.special.log_softmax(logits.astype(np.float64))[token]
    assert logprob(logits, token) == pytest.approx(expected, rel=1e-5, abs=1e-4)


@given(_LOGITS, st.integers(0, 60))
def test_most_likely_is_the_head_of_the_sorted_distribution(logits: np.ndarray, count: int) -> None:
    """Best first, no token twice, never more than there are."""
    found = most_likely(logits, count)
    assert [float(logits[token]) for token, _ in found] == sorted(map(float, logits), reverse=True)[:count]
    assert len({token for token, _ in found}) == len(found)


@given(
    _LOGITS | arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(-9, 9, width=32, allow_subnormal=False)),
    st.floats(0, 0.99),
)
def test_the_nucleus_is_the_smallest_head_with_its_mass(logits: np.ndarray, top_p: float) -> None:
    """Its tokens have the mass asked for, and would not without the last of them."""
    found = nucleus(logits, top_p)
    masses = scipy.special.softmax(logits.astype(np.float64))
    found = found[np.argsort(-logits[found], kind="stable")]
    # Logits that differ in their last bits alone are equally likely.
    assert masses[found] == pytest.approx(sorted(masses, reverse=True)[: len(found)], rel=1e-6)
    assert len(set(found.tolist())) == len(found) >= 1
    assert masses[found].sum() >= top_p - 1e-5
    assert masses[found[:-1]].sum() <= top_p + 1e-5
