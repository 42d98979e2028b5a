"""The settings of a training, and its error. PURE; apart from `train` because the CLI needs them without torch."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.errors import Moe2Error


class TrainingError(Moe2Error):
    """No gate can be trained from the outcomes."""


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training; part of the checkpoint's manifest."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds of the networks that are trained and folded into one gate."""
    width: int = 16
    """Embedding dimensions of each network."""
    hidden: int = 48
    """Hidden units of each network."""
    epochs: int = 12
    batch_rows: int = 128
    """Rows of the pool in each step."""
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    ngram_dropout: float = 0.3
    """Share of the n-grams that is hidden in each step."""
    tau: float = 0.1
    """Temperature of the training objective and of the gate's logits."""
    task_weight: float = 1.0
    """Weight of the log loss of the kinds of the pool's rows."""
    auxiliary_weight: float = 0.5
    """Weight of the log loss of the kinds of other sources' rows."""
    auxiliary_share: float = 1.0
    """Rows of other sources per row of the pool in a batch."""
