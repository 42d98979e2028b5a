"""A gate made by hand: it takes every prompt for its first kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe2.coordinator.gating.checkpoint import CHECKPOINT_VERSION, Manifest, feature_fields, save_checkpoint
from moe2.coordinator.gating.features import SHAPE_SIZE, FeatureConfig
from moe2.coordinator.gating.gate import GateParameters


def write_gate(
    path: Path, experts: Sequence[str], kinds: Sequence[str], profile: Sequence[Sequence[float]] | None = None
) -> Path:
    """A checkpoint for these experts, each a little better than the one before.

    profile: a row of scores per kind of prompt instead.
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
    manifest = Manifest(
        version=CHECKPOINT_VERSION,
        moe2_version="test",
        experts=tuple(experts),
        kinds=tuple(kinds),
        features=feature_fields(features),
        tau=0.1,
        data_sha256="0" * 64,
        source=None,
        rows={},
        training={},
        metrics={},
    )
    save_checkpoint(path, parameters, manifest)
    return path
