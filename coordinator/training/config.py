"""How a gate is trained, and the error when it cannot be. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.errors import Moe2Error


class TrainingError(Moe2Error):
    """Outcomes from which no gate can be trained."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a gate is trained. Part of the checkpoint's manifest.

    seeds: one network each, folded into one gate. width, hidden: of each network. tau: of the objective. task_weight,
    auxiliary_weight: of the kinds' log loss on the pool's rows and on other sources' rows. auxiliary_share: rows of
    other sources per row of the pool in a batch. profile_shrinkage: rows' worth of the overall mean in each kind's
    profile. ngram_dropout: share of n-grams hidden in each step.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    width: int = 16
    hidden: int = 48
    epochs: int = 12
    batch_rows: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    ngram_dropout: float = 0.3
    tau: float = 0.1
    task_weight: float = 1.0
    auxiliary_weight: float = 0.5
    auxiliary_share: float = 1.0
    profile_shrinkage: float = 5.0
