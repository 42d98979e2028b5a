"""Gates made by hand, for what needs a gate but no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe2.coordinator.gate.checkpoint import CHECKPOINT_VERSION, Manifest, feature_fields, save_checkpoint
from moe2.coordinator.gate.features import SHAPE_SIZE, FeatureConfig
from moe2.coordinator.gate.gate import Gate, GateParameters

TAU = 0.1


@dataclass(frozen=True)
class MadeGate:
    """What training gives, too: a gate with what is written beside it."""

    gate: Gate
    manifest: Manifest


def random_gate(experts: Sequence[str], kinds: Sequence[str], features: FeatureConfig) -> MadeGate:
    """A gate that answers every prompt differently; every number in it is drawn, the same each time."""
    random = np.random.default_rng(11)
    kind_count, count, width, hidden, numbers = len(kinds), len(experts), 4, 6, SHAPE_SIZE

    def some(*shape: int) -> np.ndarray:
        return random.normal(0.0, 0.5, shape).astype(np.float32)

    parameters = GateParameters(
        idf=np.abs(some(features.buckets)) + 1,
        embedding=some(features.buckets, width).astype(np.float16).astype(np.float32),
        shape_mean=some(numbers),
        shape_scale=np.abs(some(numbers)) + 1,
        hidden_weight=some(hidden, width + numbers),
        hidden_bias=some(hidden),
        task_weight=some(kind_count, hidden),
        task_bias=some(kind_count),
        residual_weight=some(count, hidden),
        residual_bias=some(count),
        profile=random.uniform(0.2, 0.8, (kind_count, count)).astype(np.float32),
        calibration_slope=np.abs(some(count)) + 1,
        calibration_offset=some(count),
    )
    gate = Gate(parameters, features, experts, TAU)
    return MadeGate(gate, _manifest(experts, kinds, features))


def write_gate(
    path: Path,
    experts: Sequence[str],
    kinds: Sequence[str],
    profile: Sequence[Sequence[float]] | None = None,
    by_scoring: Sequence[Sequence[float]] | None = None,
) -> Path:
    """A checkpoint for these experts, each a little better than the one before; its gate takes every prompt for its
    first kind.

    profile: a row of scores per kind of prompt instead. by_scoring: the same where experts score given options.
    """
    features = FeatureConfig(bucket_bits=4)
    kind_count, count = len(kinds), len(experts)

    def nothing(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=np.float32)

    parameters = GateParameters(
        idf=nothing(features.buckets),
        embedding=nothing(features.buckets, 2),
        shape_mean=nothing(SHAPE_SIZE),
        shape_scale=nothing(SHAPE_SIZE),
        hidden_weight=nothing(2, 2 + SHAPE_SIZE),
        hidden_bias=nothing(2),
        task_weight=nothing(kind_count, 2),
        task_bias=np.array([5.0, *nothing(kind_count - 1)], dtype=np.float32),
        residual_weight=nothing(count, 2),
        residual_bias=nothing(count),
        profile=np.array(profile or [np.linspace(0.3, 0.7, count).tolist()] * kind_count, dtype=np.float32),
        calibration_slope=nothing(count) + 1,
        calibration_offset=nothing(count),
    )
    scored = None if by_scoring is None else np.array(by_scoring, dtype=np.float64)
    save_checkpoint(path, parameters, _manifest(experts, kinds, features), by_scoring=scored)
    return path


def _manifest(experts: Sequence[str], kinds: Sequence[str], features: FeatureConfig) -> Manifest:
    return Manifest(
        version=CHECKPOINT_VERSION,
        moe2_version="test",
        experts=tuple(experts),
        kinds=tuple(kinds),
        features=feature_fields(features),
        tau=TAU,
        data_sha256="0" * 64,
        source=None,
        rows={},
        training={},
        metrics={},
    )
