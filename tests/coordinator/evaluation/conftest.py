"""One small evaluation for all tests that only look at it."""

from __future__ import annotations

import pytest

from moe2.coordinator.evaluation.report import EvaluationReport
from moe2.coordinator.gating.features import FeatureConfig
from moe2.coordinator.gating.training_config import TrainingConfig
from tests.coordinator.gating.outcome_tables import synthetic_outcomes

SMALL_FEATURES = FeatureConfig(bucket_bits=10)
SMALL_TRAINING = TrainingConfig(seeds=(0,), width=8, hidden=16, epochs=8, batch_rows=32)


@pytest.fixture(scope="session")
def report() -> EvaluationReport:
    # Importing torch and its optimisers takes seconds; only slow tests train.
    from moe2.coordinator.evaluation.study import evaluate

    return evaluate(synthetic_outcomes(), training=SMALL_TRAINING, features=SMALL_FEATURES, source="synthetic")
