"""Several trained networks as one, in the form that is served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from moe2.coordinator.gating.gate import GateParameters
from moe2.coordinator.gating.network import GateNetwork
from moe2.coordinator.gating.preparation import PreparedRows


def folded(networks: Sequence[GateNetwork], rows: PreparedRows) -> GateParameters:
    """Several networks as one: embeddings and hidden units side by side, heads averaged. Auxiliary kinds go."""
    width, hidden = networks[0].embedding.weight.shape[1], networks[0].hidden.bias.shape[0]
    count, kinds = len(networks), len(rows.kinds)
    weight = np.zeros((hidden * count, width * count + rows.shapes.shape[1]), dtype=np.float32)
    for s, network in enumerate(networks):
        block = network.hidden.weight.detach().numpy()
        weight[s * hidden : (s + 1) * hidden, s * width : (s + 1) * width] = block[:, :width]
        weight[s * hidden : (s + 1) * hidden, count * width :] = block[:, width:]

    def joined(parts: Iterable[Tensor], axis: int) -> npt.NDArray[np.float32]:
        return np.concatenate([part.detach().numpy() for part in parts], axis=axis).astype(np.float32)

    def mean(parts: Iterable[Tensor]) -> npt.NDArray[np.float32]:
        return np.asarray(np.mean([part.detach().numpy() for part in parts], axis=0), dtype=np.float32)

    experts = rows.scores.shape[1]
    embedding = joined((network.embedding.weight for network in networks), 1)
    return GateParameters(
        idf=rows.idf,
        embedding=embedding.astype(np.float16).astype(np.float32),
        shape_mean=rows.shape_mean,
        shape_scale=rows.shape_scale,
        hidden_weight=weight,
        hidden_bias=joined((network.hidden.bias for network in networks), 0),
        task_weight=joined((network.task_head.weight[:kinds] / count for network in networks), 1),
        task_bias=mean(network.task_head.bias[:kinds] for network in networks),
        residual_weight=joined((network.residual_head.weight / count for network in networks), 1),
        residual_bias=mean(network.residual_head.bias for network in networks),
        profile=rows.profile,
        calibration_slope=np.ones(experts, dtype=np.float32),
        calibration_offset=np.zeros(experts, dtype=np.float32),
    )
