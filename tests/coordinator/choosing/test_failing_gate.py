"""A gate that fails while it serves: requests are still answered, and the status says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe2.common.health import Severity
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.gate.checkpoint import load_checkpoint
from moe2.coordinator.gate.gate import GatePrediction
from tests.coordinator.experts import expert
from tests.fakes.gates import write_gate

REQUEST = SelectionRequest("moe2", Demand(prompt_tokens=10, max_tokens=20), text="Who is king?")
FLEET = (expert("agent-1", "qwen-7b"), expert("agent-2", "smollm-1b"))


def test_requests_are_served_by_priors_and_the_warning_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the gate fails the larger model's prior wins, with `gate_failed`; once it works again both are gone."""
    gate, manifest = load_checkpoint(write_gate(tmp_path / "g.safetensors", ["qwen-7b", "smollm-1b"], ["any"]))
    scorer = Scorer(gate, manifest.kinds)
    selector = Selector(scorer, {}, clock=lambda: 0.0)

    def chosen() -> str:
        decided = selector.select(REQUEST, FLEET, {}, 0)
        assert isinstance(decided, Selection)
        return decided.first.expert.model

    assert chosen() == "smollm-1b"  # what this gate learnt
    assert not scorer.warnings()
    nothing = np.full(2, np.nan)
    for fail in (lambda prompt: 1 / 0, lambda prompt: GatePrediction(nothing, nothing, nothing)):
        with monkeypatch.context() as patched:
            patched.setattr(gate, "predict", fail)
            assert chosen() == "qwen-7b"
            (warning,) = scorer.warnings()
            assert (warning.code, warning.severity) == ("gate_failed", Severity.DEGRADED)
            assert warning.remedy
    assert chosen() == "smollm-1b"
    assert not scorer.warnings()
