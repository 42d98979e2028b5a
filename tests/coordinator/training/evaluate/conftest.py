"""One small evaluation for all tests that only look at it."""

from __future__ import annotations

import pytest

from moe2.coordinator.gate.features import FeatureConfig
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.evaluate.report import EvaluationReport
from tests.coordinator.training.outcome_tables import synthetic_outcomes

SMALL_FEATURES = FeatureConfig(bucket_bits=10)
SMALL_TRAINING = TrainingConfig(seeds=(0,), width=8, hidden=16, epochs=8, batch_rows=32)


@pytest.fixture(scope="session")
def report() -> EvaluationReport:
    # Importing torch and its optimisers takes seconds; only slow tests train.
    from moe2.coordinator.training.evaluate.study import evaluate

    return evaluate(synthetic_outcomes(), training=SMALL_TRAINING, features=SMALL_FEATURES, source="synthetic")
