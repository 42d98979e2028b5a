"""A vote is judged by how well experts score given options, every other mode by how well they write."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, Mode, SelectionRequest, Wish
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.gate.checkpoint import CheckpointError, load_checkpoint
from tests.coordinator.experts import expert
from tests.fakes.gates import write_gate

FLEET = (expert("agent-1", "writer"), expert("agent-2", "reader"))
MODELS, KINDS = ("writer", "reader"), ("facts", "sums")
WRITTEN, SCORED = ((0.8, 0.3), (0.8, 0.3)), ((0.4, 0.9), (0.4, 0.9))


def decided(path: Path, by_scoring: tuple[tuple[float, ...], ...] | None, mode: Mode) -> Selection:
    gate, manifest = load_checkpoint(write_gate(path / "gate.safetensors", MODELS, KINDS, WRITTEN, by_scoring))
    selector = Selector(Scorer(gate, manifest.kinds), {}, clock=lambda: 0.0)
    asked = SelectionRequest(
        model="moe2",
        demand=Demand(10, 20),
        text="x",
        wish=Wish(mode=mode, max_experts=1),
        modes=frozenset(Mode),
        choice_tokens=4,
    )
    found = selector.select(asked, FLEET, {}, 0)
    assert isinstance(found, Selection)
    return found


def test_a_vote_goes_to_who_scores_options_well(tmp_path: Path) -> None:
    """The reader votes, with the chance that the gate gives it for scoring; the writer writes."""
    vote = decided(tmp_path, SCORED, Mode.VOTE)
    assert vote.first.expert.model == "reader"
    assert vote.first.score == pytest.approx(0.9, abs=1e-3)
    route = decided(tmp_path, SCORED, Mode.ROUTE)
    assert route.first.expert.model == "writer"
    assert route.first.score == pytest.approx(0.8, abs=1e-3)


def test_without_such_scores_a_vote_goes_by_writing(tmp_path: Path) -> None:
    """A gate of outcomes that were written only knows nothing better."""
    assert decided(tmp_path, None, Mode.VOTE).first.expert.model == "writer"


def test_a_checkpoint_with_other_shapes_is_refused(tmp_path: Path) -> None:
    """Scores of another number of experts do not fit the gate."""
    path = write_gate(tmp_path / "gate.safetensors", MODELS, KINDS, WRITTEN, ((0.5,), (0.5,)))
    with pytest.raises(CheckpointError, match="does not fit together"):
        load_checkpoint(path)
