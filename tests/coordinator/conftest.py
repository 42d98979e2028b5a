"""One small gate made by hand and one small trained gate, for all tests that only look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moe2.coordinator.gate.features import FeatureConfig
from moe2.coordinator.training.config import TrainingConfig
from tests.coordinator.training.outcome_tables import synthetic_outcomes
from tests.fakes.gates import MadeGate, random_gate

if TYPE_CHECKING:
    from moe2.coordinator.training.train import TrainedGate

SMALL_FEATURES = FeatureConfig(bucket_bits=10)
SMALL_TRAINING = TrainingConfig(seeds=(0, 1), width=8, hidden=16, epochs=8, batch_rows=32)


@pytest.fixture(scope="session")
def made() -> MadeGate:
    return random_gate(("expert-0", "expert-1", "expert-2"), ("code", "maths", "trivia"), SMALL_FEATURES)


@pytest.fixture(scope="session")
def trained() -> TrainedGate:
    # Importing torch and its optimisers takes seconds; only slow tests train.
    from moe2.coordinator.training.train import train_gate

    return train_gate(synthetic_outcomes(), config=SMALL_TRAINING, features=SMALL_FEATURES, source="synthetic")
