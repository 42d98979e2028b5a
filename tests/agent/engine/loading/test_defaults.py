"""What a model draws with where a request leaves it open."""

from __future__ import annotations

import pytest

from moe2.agent.engine.loading.defaults import defaults_of, recommended
from moe2.common.generation import MAX_TOP_K, NEUTRAL_SAMPLING, USUAL_SAMPLING, Sampling, completed

QWEN = {
    "general.sampling.temp": "0.600000",
    "general.sampling.top_k": "20",
    "general.sampling.top_p": "0.950000",
    "general.sampling.min_p": "0.000000",
    "general.sampling.penalty_repeat": "1.050000",
}


def test_a_file_without_recommendations_has_the_usual_ones() -> None:
    """The usual ones are those of llama.cpp's server."""
    assert defaults_of(Sampling(), lambda key: None) == USUAL_SAMPLING


def test_a_files_recommendations_come_before_the_usual_ones() -> None:
    """What the file does not name stays as usual."""
    found = defaults_of(Sampling(), {"general.sampling.temp": "0.3"}.get)
    assert (found.temperature, found.top_k) == (0.3, USUAL_SAMPLING.top_k)


def test_what_is_configured_comes_before_a_files_recommendations() -> None:
    """The operator knows better than the file."""
    found = defaults_of(Sampling(temperature=0.1), QWEN.get)
    assert found == Sampling(temperature=0.1, top_k=20, top_p=0.95, min_p=0.0, repeat_penalty=1.05)


def test_a_clients_own_values_win_one_by_one() -> None:
    """Also where they are what another API has as its default."""
    drawn = completed(Sampling(temperature=1.0, seed=3), defaults_of(Sampling(), QWEN.get))
    assert (drawn.temperature, drawn.top_k, drawn.seed) == (1.0, 20, 3)


@pytest.mark.parametrize("text", ["", "warm", "nan", "inf", "-1", "2.5"])
def test_a_recommendation_that_makes_no_sense_is_left_out(text: str) -> None:
    """A file may say anything, and a request could not ask for it either."""
    assert recommended({"general.sampling.temp": text}.get).temperature is None


@pytest.mark.parametrize("text", ["0", "-1", "5000000"])
def test_a_top_k_of_all_tokens_cuts_nothing(text: str) -> None:
    """llama.cpp reads 0 and less as "all tokens"."""
    found = recommended({"general.sampling.top_k": text}.get)
    assert found.top_k == MAX_TOP_K
    assert completed(found, NEUTRAL_SAMPLING).top_k is None
