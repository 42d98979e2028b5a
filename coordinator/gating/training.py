"""Training of the gate: outcomes in, parameters and figures out. Deterministic for given data, configuration and build.

The loss per prompt is the design's entropy-regularised expected loss over the experts that were run on it (so rows with
missing experts count as well: the objective's optimum is the same on every subset), plus the log loss of the
probabilities (which fixes the level that a softmax leaves free), plus the log loss of the prompt's kind where the
outcomes name kinds. Rows of other sources can help to learn the embedding: they have kinds of their own, told apart
only within their source, and touch neither experts nor profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from moe2.common import __version__
from moe2.coordinator.gating.checkpoint import CHECKPOINT_VERSION, Manifest, feature_fields
from moe2.coordinator.gating.features import FeatureConfig
from moe2.coordinator.gating.folding import folded
from moe2.coordinator.gating.gate import Gate
from moe2.coordinator.gating.network import Batch, GateNetwork, entropy_regularised_loss, expert_log_odds
from moe2.coordinator.gating.outcomes import Outcomes
from moe2.coordinator.gating.preparation import PreparedRows
from moe2.coordinator.gating.training_config import TrainingConfig, TrainingError
from moe2.coordinator.gating.validation import chosen_on_validation

IndexArray = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with steps done and steps in all."""


@dataclass(frozen=True)
class TrainedGate:
    """A gate with what is to be written beside it."""

    gate: Gate
    manifest: Manifest


def train_gate(
    outcomes: Outcomes,
    *,
    auxiliary: Outcomes | None = None,
    config: TrainingConfig | None = None,
    features: FeatureConfig | None = None,
    source: str | None = None,
    progress: Progress | None = None,
) -> TrainedGate:
    """Train on the "train" rows, choose and calibrate on the "val" rows; "test" rows are never looked at.

    outcomes: the pool's rows and experts. auxiliary: rows of other sources (their scores are not used). source: what
    the manifest calls the data. Raises TrainingError.
    """
    config, features = config or TrainingConfig(), features or FeatureConfig()
    _check(outcomes, config)
    train, val = outcomes.take(outcomes.rows_of("train")), outcomes.take(outcomes.rows_of("val"))
    helpers = _usable_auxiliary(auxiliary, outcomes) if config.auxiliary_share > 0 else None
    rows = PreparedRows(train, helpers, features, config)
    networks = []
    total = len(config.seeds) * config.epochs * rows.batches
    for position, seed in enumerate(config.seeds):
        report = _Report(progress, position * config.epochs * rows.batches, total)
        networks.append(_fit(rows, config, seed, report))
    gate = Gate(folded(networks, rows), features, outcomes.experts, config.tau)
    gate, metrics = chosen_on_validation(gate, val)
    manifest = Manifest(
        version=CHECKPOINT_VERSION,
        moe2_version=__version__,
        experts=outcomes.experts,
        kinds=rows.kinds,
        features=feature_fields(features),
        tau=config.tau,
        data_sha256=outcomes.digest,
        source=source,
        rows={"train": len(train), "val": len(val), "auxiliary": len(helpers) if helpers else 0},
        training=msgspec.json.decode(msgspec.json.encode(asdict(config))),
        metrics=metrics,
    )
    return TrainedGate(gate, manifest)


@dataclass(frozen=True)
class _Report:
    """Progress of one seed as progress of the whole training."""

    progress: Progress | None
    before: int
    total: int

    def __call__(self, step: int) -> None:
        if self.progress is not None:
            self.progress(self.before + step, self.total)


def _check(outcomes: Outcomes, config: TrainingConfig) -> None:
    if len(outcomes.experts) < 2:
        raise TrainingError("A gate needs at least two experts.", remedy="Choose more experts, or another source.")
    if not config.seeds:
        raise TrainingError("No seed was given.", remedy="Give at least one.")
    for split, least in (("train", 20), ("val", 10)):
        known = (~np.isnan(outcomes.scores[outcomes.rows_of(split)])).any(axis=1).sum()
        if known < least:
            raise TrainingError(
                f"The outcomes have {known} scored {split} rows for these experts; at least {least} are needed.",
                remedy="Collect more outcomes, or choose experts that were run together.",
            )
    for n, name in enumerate(outcomes.experts):
        if np.isnan(outcomes.scores[outcomes.rows_of("train"), n]).all():
            raise TrainingError(
                f"Expert {name} has no score in the train rows.",
                remedy="Leave it out: an expert without data starts from a prior.",
            )


def _usable_auxiliary(auxiliary: Outcomes | None, outcomes: Outcomes) -> Outcomes | None:
    """Train rows of other sources that name a kind, without prompts that the pool holds out."""
    if auxiliary is None:
        return None
    held_out = {outcomes.prompts[row] for split in ("val", "test") for row in outcomes.rows_of(split)}
    keep = [
        row for row in auxiliary.rows_of("train") if auxiliary.tasks[row] and auxiliary.prompts[row] not in held_out
    ]
    return auxiliary.take(keep) if keep else None


def _fit(rows: PreparedRows, config: TrainingConfig, seed: int, report: _Report) -> GateNetwork:
    """One network from one seed. The global random state is left as it was."""
    generator = torch.Generator().manual_seed(seed)
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = GateNetwork(
            buckets=rows.buckets,
            shape_size=rows.shapes.shape[1],
            kinds=rows.group_mask.shape[0],
            experts=rows.scores.shape[1],
            width=config.width,
            hidden=config.hidden,
            dropout=config.dropout,
        ).train()
        optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        steps = config.epochs * rows.batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps)
        for step, chosen in enumerate(_batches(rows, config, order), start=1):
            batch = rows.batch(chosen, 1 - config.ngram_dropout, generator)
            loss = _loss(network, batch, torch.from_numpy(chosen), rows, config)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            report(step)
    return network.eval()


def _batches(rows: PreparedRows, config: TrainingConfig, order: np.random.Generator) -> Iterable[IndexArray]:
    """Row numbers of each step: a slice of the shuffled pool, then random auxiliary rows."""
    auxiliary = int(rows.shapes.shape[0]) - rows.pool_rows
    for _ in range(config.epochs):
        shuffled = order.permutation(rows.pool_rows)
        for start in range(0, rows.pool_rows, config.batch_rows):
            chosen = shuffled[start : start + config.batch_rows]
            if auxiliary:
                count = round(chosen.size * config.auxiliary_share)
                chosen = np.concatenate([chosen, rows.pool_rows + order.integers(0, auxiliary, count)])
            yield chosen.astype(np.int64)


def _loss(network: GateNetwork, batch: Batch, chosen: Tensor, rows: PreparedRows, config: TrainingConfig) -> Tensor:
    kind_logits, residual = network(batch)
    kind = rows.kind[chosen]
    kind_loss = functional.cross_entropy(kind_logits + rows.group_mask[kind], kind, reduction="none")
    in_pool = chosen < rows.pool_rows
    pool = chosen[in_pool]
    known, scores = rows.known[pool], rows.scores[pool]
    profile = torch.from_numpy(rows.profile)
    log_odds = expert_log_odds(kind_logits[in_pool][:, : profile.shape[0]], residual[in_pool], profile)
    gated = entropy_regularised_loss(torch.sigmoid(log_odds) / config.tau, 1 - scores, known, config.tau) / config.tau
    each = functional.binary_cross_entropy_with_logits(log_odds, scores, reduction="none")
    level = (each * known).sum() / known.sum().clamp(min=1)
    loss = gated.mean() + level + config.task_weight * kind_loss[in_pool].mean()
    if bool((~in_pool).any()):
        loss = loss + config.auxiliary_weight * kind_loss[~in_pool].mean()
    return loss
