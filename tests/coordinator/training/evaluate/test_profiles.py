"""Cost profiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moe2.coordinator.training.evaluate.profiles import PROFILES, ProfileError, default_hosts, fleet_costs
from tests.coordinator.training.outcome_tables import synthetic_outcomes


def test_a_published_answer_is_costed_as_published() -> None:
    """100 tokens of an 8B model on AGX Orin in MAXN take 217 J and 100 / 22 s, plus the prompt's share."""
    table = replace(synthetic_outcomes(10, experts=1), experts=("llama-8B",), chars=np.full((10, 1), 400.0))
    costs = fleet_costs(table, table, {"llama-8B": "agx-orin-maxn"}, 1.0)
    prompt_tokens = len(table.prompts[0]) / 4
    assert costs.predicted_energy_j[0, 0] == pytest.approx(217 + prompt_tokens * 44.4 / 711)
    assert costs.predicted_delay_s[0, 0] == pytest.approx(100 / 22 + prompt_tokens / 711)
    assert costs.lengths_known == 1.0


def test_unknown_lengths_use_the_assumption_and_say_so() -> None:
    """Without lengths every answer has the assumed number of tokens, and the known share is 0."""
    table = replace(synthetic_outcomes(10), chars=np.full((10, 3), np.nan))
    costs = fleet_costs(table, table, default_hosts(table.experts), 64.0)
    assert costs.lengths_known == 0.0
    assert np.array_equal(costs.actual_energy_j, costs.predicted_energy_j)


def test_predictions_do_not_see_the_real_lengths() -> None:
    """A predicted cost comes from train rows, the actual one from the answer itself."""
    train = synthetic_outcomes(10)
    table = replace(train, chars=train.chars * 3)
    costs = fleet_costs(table, train, default_hosts(table.experts), 64.0)
    assert (costs.actual_energy_j > costs.predicted_energy_j).all()


def test_larger_models_cost_more() -> None:
    """Costs grow with the size in the name."""
    table = replace(synthetic_outcomes(10, experts=2), experts=("x-4B", "x-8B"))
    costs = fleet_costs(table, table, {"x-4B": "rtx-4090", "x-8B": "rtx-4090"}, 64.0)
    assert costs.predicted_energy_j[:, 1] == pytest.approx(2 * costs.predicted_energy_j[:, 0])


def test_unpublished_figures_are_marked_assumed() -> None:
    """The RTX 4090's energy is nobody's measurement, and the profile says so."""
    assert PROFILES["rtx-4090"].marks["energy"] == "assumed"
    assert PROFILES["agx-orin-30w"].marks["energy"] == "published"


@pytest.mark.parametrize(
    ("hosts", "tokens"), [({}, 1.0), ({"expert-0": "abacus"}, 1.0), ({"expert-0": "rtx-4090"}, -1.0)]
)
def test_impossible_fleets_are_refused(hosts: dict[str, str], tokens: float) -> None:
    """No host, an unknown host and answers of negative length are errors."""
    table = synthetic_outcomes(10, experts=1)
    with pytest.raises(ProfileError):
        fleet_costs(table, table, hosts, tokens)
