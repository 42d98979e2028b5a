"""A gate with a sentence encoder reads prompts beside the event loop."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest

from moe2.coordinator.appraisal import Appraiser
from moe2.coordinator.gating.checkpoint import load_checkpoint
from moe2.coordinator.gating.features import ENCODER, ENCODER_WIDTH, FeatureConfig, FeatureExtractor
from moe2.coordinator.ledger.bookkeeper import Bookkeeper
from moe2.coordinator.selection import Selector
from moe2.coordinator.service import Service
from moe2.coordinator.settings import DispatchSection
from moe2.coordinator.table import CapabilityTable
from tests.fakes.gates import write_gate


class Reader:
    """Stands in for the encoder, and remembers who asked in which thread."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def embed(self, text: str) -> np.ndarray:
        self.asked.append((text, threading.get_ident()))
        if text == "broken":
            raise RuntimeError("no such token")
        return np.zeros(ENCODER_WIDTH, dtype=np.float32)


def service_of(appraiser: Appraiser) -> Service:
    selector = Selector(appraiser, {}, clock=lambda: 0.0)
    return Service(
        CapabilityTable(stale_s=5.0, evict_s=15.0),
        selector,
        send=lambda *_: False,
        max_active=1,
        bookkeeper=create_autospec(Bookkeeper),
        on_retired=lambda *_: None,
        settings=DispatchSection(),
    )


async def test_the_encoder_runs_in_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the reading is done there; a prompt that it cannot read is left to the gate's own fallback."""
    reader = Reader()
    gate, _ = load_checkpoint(write_gate(tmp_path / "g.safetensors", ["a", "b"], ["any"]))
    features = FeatureConfig(bucket_bits=4, encoder=ENCODER)
    monkeypatch.setattr(gate, "extractor", FeatureExtractor(features, reader.embed))
    service = service_of(Appraiser(gate))
    await service.read_ahead("Who is king?")
    await service.read_ahead("broken")
    assert [text for text, _ in reader.asked] == ["Who is king?", "broken"]
    assert threading.get_ident() not in [thread for _, thread in reader.asked]


async def test_n_grams_are_read_where_they_are_needed(tmp_path: Path) -> None:
    """Without an encoder, or without a gate, there is nothing to do ahead."""
    gate, _ = load_checkpoint(write_gate(tmp_path / "g.safetensors", ["a", "b"], ["any"]))
    for appraiser in (Appraiser(gate), Appraiser(None)):
        assert appraiser.read_ahead is None
        await service_of(appraiser).read_ahead("Who is king?")
