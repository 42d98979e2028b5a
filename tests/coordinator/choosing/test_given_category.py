"""A request that names its category tells the gate the kind of the prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, SelectionRequest, Wish
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.gate.checkpoint import load_checkpoint
from tests.coordinator.experts import expert
from tests.fakes.gates import write_gate

FLEET = (expert("agent-1", "poet"), expert("agent-2", "clerk"))
KINDS = ("poems", "sums")
PROFILE = ((0.9, 0.1), (0.2, 0.8))


@pytest.fixture
def selector(tmp_path: Path) -> Selector:
    """A selector whose gate takes every prompt for a poem."""
    path = write_gate(tmp_path / "gate.safetensors", ("poet", "clerk"), KINDS, PROFILE)
    gate, manifest = load_checkpoint(path)
    return Selector(Scorer(gate, manifest.kinds), {}, clock=lambda: 0.0)


def decide(selector: Selector, category: str | None) -> Selection:
    asked = SelectionRequest(
        model="moe2", demand=Demand(10, 20), text="one and one", wish=Wish(category=category), modes=frozenset()
    )
    decided = selector.select(asked, FLEET, {}, 0)
    assert isinstance(decided, Selection)
    return decided


@pytest.mark.parametrize(
    ("category", "model", "kind"),
    [(None, "poet", "poems"), ("sums", "clerk", "sums"), ("poems", "poet", "poems"), ("letters", "poet", "poems")],
)
def test_a_category_that_the_gate_knows_is_the_kind(
    selector: Selector, category: str | None, model: str, kind: str
) -> None:
    """The expert that is best at it answers; without one, or with another one, the gate's own guess decides."""
    decided = decide(selector, category)
    assert (decided.first.expert.model, decided.kind) == (model, kind)


def test_a_given_kind_leaves_no_doubt(tmp_path: Path) -> None:
    """With a given kind the scores are those of that kind alone, not a mixture over kinds."""
    gate, _ = load_checkpoint(write_gate(tmp_path / "gate.safetensors", ("poet", "clerk"), KINDS, PROFILE))
    told, found = gate.predict("one and one", 1), gate.predict("one and one")
    assert told.kinds.tolist() == [0.0, 1.0]
    assert told.probabilities == pytest.approx(PROFILE[1], rel=1e-3)
    assert np.all((found.probabilities > 0.1) & (found.probabilities < 0.9))
