"""Training of the gate from outcomes to a served gate with its manifest; deterministic for given data and settings.

`train_gate` fits one network per seed and folds the networks into one (`fitted`), and chooses the residual's scale and
the calibration on validation rows (`chosen_on_validation`).

The loss per prompt is the entropy-regularised expected loss over the experts that were run on it (design.md, section
2), so that rows with missing experts count as well: the objective's optimum is the same on every subset. Added to it
are the log loss of the probabilities, which fixes the level that a softmax leaves free, and the log loss of the
prompt's kind where the outcomes name kinds. Rows of other sources can help to learn the embedding: they have kinds of
their own, told apart only within their source, and change neither experts nor profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from moe2.common import __version__
from moe2.coordinator.gate.calibration import (
    Calibration,
    binary_log_loss,
    expected_calibration_error,
    fit_calibration,
    log_odds_of,
    sigmoid,
)
from moe2.coordinator.gate.checkpoint import CHECKPOINT_VERSION, Manifest, feature_fields
from moe2.coordinator.gate.features import FeatureConfig
from moe2.coordinator.gate.gate import Gate, GateParameters
from moe2.coordinator.training.config import TrainingConfig, TrainingError
from moe2.coordinator.training.gain import Gain, best_single, chosen_scores, gain_of
from moe2.coordinator.training.network import (
    Batch,
    GateNetwork,
    PreparedRows,
    entropy_regularised_loss,
    expert_log_odds,
    kinds_of,
)
from moe2.coordinator.training.outcomes import MIN_ROWS, Outcomes
from moe2.coordinator.training.profile import length_profile, scoring_profile
from moe2.coordinator.training.votes import vote_record

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with the number of steps done and of all steps."""

RESIDUAL_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class TrainedGate:
    """A trained gate with the manifest of its checkpoint."""

    gate: Gate
    manifest: Manifest
    gain: Gain
    """What it gains on the validation rows over the expert that is the best one on the train rows."""


def train_gate(
    outcomes: Outcomes,
    *,
    auxiliary: Outcomes | None = None,
    config: TrainingConfig | None = None,
    features: FeatureConfig | None = None,
    source: str | None = None,
    progress: Progress | None = None,
) -> TrainedGate:
    """Train a gate on the "train" rows and calibrate it on the "val" rows; "test" rows are never looked at.

    outcomes: the pool's rows and experts. auxiliary: rows of other sources, whose scores are not used. source: name of
    the data in the manifest. Raises TrainingError.
    """
    config, features = config or TrainingConfig(), features or FeatureConfig()
    gate, rows = fitted(outcomes, auxiliary=auxiliary, config=config, features=features, progress=progress)
    train, val = outcomes.take(outcomes.rows_of("train")), outcomes.take(outcomes.rows_of("val"))
    gate, metrics, gain = chosen_on_validation(gate, val, best_single(train.scores, val.scores))
    gate = _with_more(gate, train, rows)
    manifest = Manifest(
        version=CHECKPOINT_VERSION,
        moe2_version=__version__,
        experts=outcomes.experts,
        kinds=rows.kinds,
        features=feature_fields(features),
        tau=config.tau,
        data_sha256=outcomes.digest,
        source=source,
        rows={"train": len(train), "val": len(val), "auxiliary": len(rows.shapes) - rows.pool_rows},
        training=msgspec.json.decode(msgspec.json.encode(asdict(config))),
        metrics=metrics,
        files=dict(outcomes.files),
    )
    return TrainedGate(gate, manifest, gain)


def fitted(
    outcomes: Outcomes,
    *,
    auxiliary: Outcomes | None,
    config: TrainingConfig,
    features: FeatureConfig,
    progress: Progress | None = None,
) -> tuple[Gate, PreparedRows]:
    """Fit a gate to the train rows, with its whole residual and uncalibrated; return it with the rows as prepared.

    The arguments are those of `train_gate`. Raises TrainingError.
    """
    _check(outcomes, config)
    helpers = _usable_auxiliary(auxiliary, outcomes) if config.auxiliary_share > 0 else None
    rows = PreparedRows(outcomes.take(outcomes.rows_of("train")), helpers, features, config)
    networks = []
    total = len(config.seeds) * config.epochs * rows.batches
    with _one_thread():
        for position, seed in enumerate(config.seeds):
            report = _Report(progress, position * config.epochs * rows.batches, total)
            networks.append(_fit(rows, config, seed, report))
    return Gate(folded(networks, rows), features, outcomes.experts, config.tau), rows


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute with one thread, and with as many as before afterwards.

    The networks are so small that threads gain nothing; on a busy machine they wait for each other many times longer
    than they compute.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_more(gate: Gate, train: Outcomes, rows: PreparedRows) -> Gate:
    """The gate with what else the train rows say: final answers, options that experts scored, lengths of answers."""
    profile = gate.parameters.profile.astype(np.float64)
    votes = vote_record(train, rows.kinds, kinds_of(train), profile)
    by_scoring = scoring_profile(train.by_scoring, kinds_of(train), rows.kinds, profile)
    lengths = length_profile(train.chars, kinds_of(train), rows.kinds)
    return Gate(gate.parameters, gate.feature_config, gate.experts, gate.tau, votes, by_scoring, answer_tokens=lengths)


@dataclass(frozen=True)
class _Report:
    """Reports the progress of one seed as progress of the whole training."""

    progress: Progress | None
    before: int
    total: int

    def __call__(self, step: int) -> None:
        if self.progress is not None:
            self.progress(self.before + step, self.total)


def _check(outcomes: Outcomes, config: TrainingConfig) -> None:
    """Raise TrainingError where the outcomes or the seeds are too few, or an expert has no score."""
    if len(outcomes.experts) < 2:
        raise TrainingError("A gate needs at least two experts.", remedy="Choose more experts, or another source.")
    if not config.seeds:
        raise TrainingError("No seed was given.", remedy="Give at least one.")
    for split, least in MIN_ROWS.items():
        known = (~np.isnan(outcomes.scores[outcomes.rows_of(split)])).any(axis=1).sum()
        if known < least:
            raise TrainingError(
                f"The outcomes have {known} scored {split} rows for these experts; at least {least} are needed.",
                remedy="Collect more outcomes, which goes on where it ended, or choose experts that were run together.",
            )
    for n, name in enumerate(outcomes.experts):
        if np.isnan(outcomes.scores[outcomes.rows_of("train"), n]).all():
            raise TrainingError(
                f"Expert {name} has no score in the train rows.",
                remedy="Leave it out: an expert without data starts from a prior.",
            )


def _usable_auxiliary(auxiliary: Outcomes | None, outcomes: Outcomes) -> Outcomes | None:
    """The train rows of other sources that name a kind, without prompts that the pool holds out; None for none."""
    if auxiliary is None:
        return None
    held_out = {outcomes.prompts[row] for split in ("val", "test") for row in outcomes.rows_of(split)}
    keep = [
        row for row in auxiliary.rows_of("train") if auxiliary.tasks[row] and auxiliary.prompts[row] not in held_out
    ]
    return auxiliary.take(keep) if keep else None


def _fit(rows: PreparedRows, config: TrainingConfig, seed: int, report: _Report) -> GateNetwork:
    """A network trained from one seed; torch's global random state is left as it was."""
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
    """The row numbers of each step: a slice of the shuffled pool, then random auxiliary rows."""
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
    """The loss of one step over the `chosen` rows."""
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


def folded(networks: Sequence[GateNetwork], rows: PreparedRows) -> GateParameters:
    """The parameters of one network that equals the mean of several: embeddings and hidden units side by side.

    Auxiliary kinds are left out.
    """
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


def chosen_on_validation(
    gate: Gate, val: Outcomes, single: int, scale: float | None = None
) -> tuple[Gate, dict[str, float], Gain]:
    """The gate with the residual's scale and the calibration that validation rows prefer, its figures, and its gain.

    single: the expert that is the best one on the train rows, which the gate is compared with. scale: the residual's;
    None for the one whose choices score best.
    """
    mean, residual = log_odds_on(gate, val)
    plain = Calibration(np.ones(len(val.experts)), np.zeros(len(val.experts)))
    scale = _residual_scale(mean, residual, val.scores) if scale is None else scale
    raw = mean + scale * residual
    calibration = fit_calibration(raw, val.scores)
    before, after = plain.probabilities(raw), calibration.probabilities(raw)
    parameters = replace(
        gate.parameters,
        residual_weight=(gate.parameters.residual_weight * scale).astype(np.float32),
        residual_bias=(gate.parameters.residual_bias * scale).astype(np.float32),
        calibration_slope=calibration.slope.astype(np.float32),
        calibration_offset=calibration.offset.astype(np.float32),
    )
    gained = gain_of(chosen_scores(after, val.scores), val.scores[:, single])
    metrics = {
        "residual_scale": scale,
        "val_rows": float(gained.rows),
        "val_score_top1": gained.score,
        "val_score_best_single": gained.other,
        "val_gain": gained.gain,
        **({} if gained.standard_error is None else {"val_gain_se": gained.standard_error}),
        "val_log_loss": binary_log_loss(after, val.scores),
        "val_calibration_error_before": expected_calibration_error(before, val.scores),
        "val_calibration_error_after": expected_calibration_error(after, val.scores),
    }
    return Gate(parameters, gate.feature_config, gate.experts, gate.tau), metrics, gained


def log_odds_on(gate: Gate, table: Outcomes) -> tuple[FloatArray, FloatArray]:
    """(rows, N) log-odds by the kinds of a table's prompts alone, and (rows, N) the residual that is added to them."""
    heads = [gate.heads(gate.extractor.extract(prompt)) for prompt in table.prompts]
    task_logits, residual = (np.stack(part).astype(np.float64) for part in zip(*heads, strict=True))
    posterior = np.exp(task_logits - task_logits.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    return log_odds_of(posterior @ gate.parameters.profile), residual


def _residual_scale(mean: FloatArray, residual: FloatArray, scores: FloatArray) -> float:
    """The residual's scale whose choices score best, or 0 where that gains no more than two standard errors over 0.

    It is judged by choices, because a residual that mends probabilities may still choose worse; and by two standard
    errors, because the best of several scales looks good by chance.
    """
    chosen = {scale: chosen_scores(sigmoid(mean + scale * residual), scores) for scale in RESIDUAL_SCALES}
    best = max(RESIDUAL_SCALES, key=lambda scale: float(np.nanmean(chosen[scale])))
    found = gain_of(chosen[best], chosen[0.0])
    return best if found.standard_error is not None and found.gain > 2 * found.standard_error else 0.0
