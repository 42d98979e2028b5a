"""The gate's network as it is trained; `gate.gate` serves the same arithmetic in numpy, and a test keeps them equal.

    hashed n-grams --(embedding bag)--+
                                      +-- hidden (GELU) --+-- task head: softmax over kinds of prompts, pi
    prompt shape ---------------------+                   +-- residual head: r, one number per expert

    log-odds of expert n answering well = logit( sum_k pi_k * profile_kn ) + residual_scale * r_n

The profile is each expert's mean score on each kind of prompt, shrunk to its overall mean. The kind of a prompt
explains most of what can be known about who answers it well; the residual is what goes beyond, and validation decides
how much of it is kept.

`PreparedRows` are the rows that it is trained on: their features, kinds and scores, and batches of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from moe2.coordinator.gate.features import FeatureConfig, FeatureExtractor, PromptFeatures
from moe2.coordinator.gate.gate import standardised_shape, weighted_counts
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.outcomes import Outcomes
from moe2.coordinator.training.profile import shrunk_profile

_MARGIN = 1e-4
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """The features of several prompts (rows), as the network reads them."""

    buckets: Tensor
    """(nnz,) n-gram buckets of all rows, one row after the other."""
    values: Tensor
    """(nnz,) weights of these buckets."""
    offsets: Tensor
    """(rows,) where each row starts in `buckets`."""
    shape: Tensor
    """(rows, shape_size) standardised shape features."""


class GateNetwork(nn.Module):
    """The trainable network: an embedding of n-grams, one hidden layer, a task head and a residual head.

    `forward` returns the task logits (rows, kinds) and the residual (rows, experts).
    """

    def __init__(
        self,
        *,
        buckets: int,
        shape_size: int,
        kinds: int,
        experts: int,
        width: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(buckets, width, mode="sum")
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.hidden = nn.Linear(width + shape_size, hidden)
        self.task_head = nn.Linear(hidden, kinds)
        self.residual_head = nn.Linear(hidden, experts)
        nn.init.zeros_(self.residual_head.weight)
        nn.init.zeros_(self.residual_head.bias)
        self.dropout = dropout

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        bag = self.embedding(batch.buckets, batch.offsets, per_sample_weights=batch.values)
        joined = functional.dropout(torch.cat([bag, batch.shape], dim=1), self.dropout, self.training)
        hidden = functional.gelu(self.hidden(joined), approximate="tanh")
        hidden = functional.dropout(hidden, self.dropout, self.training)
        return self.task_head(hidden), self.residual_head(hidden)


def expert_log_odds(kind_logits: Tensor, residual: Tensor, profile: Tensor) -> Tensor:
    """(rows, experts) the raw log-odds that each expert answers well.

    kind_logits: (rows, kinds of the pool). residual: (rows, experts). profile: (kinds of the pool, experts).
    """
    mean = (functional.softmax(kind_logits, dim=1) @ profile).clamp(_MARGIN, 1 - _MARGIN)
    return torch.logit(mean) + residual


def entropy_regularised_loss(logits: Tensor, losses: Tensor, known: Tensor, tau: float) -> Tensor:
    """(rows,) the entropy-regularised expected loss with weights softmax(logits) over the experts run on each row.

    logits, losses: (rows, experts). known: (rows, experts) True where an expert was run; a row without any gives 0.
    Source: design.md, section 2.
    """
    usable = known.any(dim=1)
    masked = logits.masked_fill(~known, float("-inf"))
    masked = torch.where(usable[:, None], masked, torch.zeros_like(masked))
    log_weights = functional.log_softmax(masked, dim=1)
    weights = log_weights.exp()
    terms = torch.where(known, weights * (losses + tau * log_weights.clamp(min=-1e4)), torch.zeros_like(weights))
    return terms.sum(dim=1)


class PreparedRows:
    """The features, kinds and scores of all train rows: first the pool's rows, then the auxiliary ones.

    train: the pool's train rows. helpers: auxiliary rows of other sources, if any; their scores are not used.
    """

    def __init__(
        self, train: Outcomes, helpers: Outcomes | None, features: FeatureConfig, config: TrainingConfig
    ) -> None:
        extractor = FeatureExtractor(features)
        prompts = (*train.prompts, *(helpers.prompts if helpers else ()))
        extracted = [extractor.extract(prompt) for prompt in prompts]
        self.pool_rows, self.buckets = len(train), features.buckets
        self.idf = _inverse_document_frequency(extracted, features.buckets)
        shapes = np.stack([entry.shape for entry in extracted])
        self.shape_mean = shapes[: self.pool_rows].mean(axis=0)
        self.shape_scale = (1 / (shapes[: self.pool_rows].std(axis=0) + 1e-2)).astype(np.float32)
        self.shapes = torch.from_numpy(standardised_shape(shapes, self.shape_mean, self.shape_scale))
        self._bucket_rows = [entry.buckets for entry in extracted]
        self._value_rows = [weighted_counts(entry, self.idf) for entry in extracted]
        self._label_kinds(train, helpers)
        self.profile = shrunk_profile(train.scores, kinds_of(train), self.kinds).astype(np.float32)
        known = ~np.isnan(train.scores)
        self.known = torch.from_numpy(known)
        self.scores = torch.from_numpy(np.where(known, train.scores, 0.0).astype(np.float32))
        self.batches = -(-self.pool_rows // config.batch_rows)

    def _label_kinds(self, train: Outcomes, helpers: Outcomes | None) -> None:
        """Number the kinds, the pool's first, and mask them so that they compete only within the pool or a source."""
        pool = kinds_of(train)
        others = (
            [f"{source}/{task}" for source, task in zip(helpers.sources, helpers.tasks, strict=True)] if helpers else []
        )
        self.kinds = tuple(sorted(set(pool)))
        names = [*self.kinds, *sorted(set(others))]
        source_of = dict(zip(others, helpers.sources, strict=True)) if helpers else {}
        groups = ["pool"] * len(self.kinds) + ["source " + source_of[name] for name in names[len(self.kinds) :]]
        number = {name: k for k, name in enumerate(names[len(self.kinds) :], start=len(self.kinds))}
        pool_number = {name: k for k, name in enumerate(self.kinds)}
        self.kind = torch.tensor([*(pool_number[name] for name in pool), *(number[name] for name in others)])
        same = np.array(groups)[:, None] == np.array(groups)[None, :]
        self.group_mask = torch.from_numpy(np.where(same, 0.0, -1e9).astype(np.float32))

    def batch(self, rows: IndexArray, keep: float, generator: torch.Generator) -> Batch:
        """The given rows as tensors, each n-gram kept with probability `keep` and scaled up by 1 / keep."""
        buckets = [self._bucket_rows[row] for row in rows]
        lengths = np.array([0, *(entry.size for entry in buckets)])
        values = torch.from_numpy(np.concatenate([self._value_rows[row] for row in rows]))
        if keep < 1:
            values = values * (torch.rand(values.shape, generator=generator) < keep) / keep
        return Batch(
            buckets=torch.from_numpy(np.concatenate(buckets)),
            values=values,
            offsets=torch.from_numpy(np.cumsum(lengths)[:-1]),
            shape=self.shapes[torch.from_numpy(rows)],
        )


def kinds_of(outcomes: Outcomes) -> list[str]:
    """The kind of each row: its task, after its source's name where the rows come from several sources."""
    if len(set(outcomes.sources)) > 1:
        return [f"{source}/{task}" for source, task in zip(outcomes.sources, outcomes.tasks, strict=True)]
    return list(outcomes.tasks)


def _inverse_document_frequency(extracted: Sequence[PromptFeatures], buckets: int) -> npt.NDArray[np.float32]:
    """(buckets,) the smoothed inverse document frequency of each bucket; 0 for buckets that never occur."""
    seen = np.bincount(np.concatenate([entry.buckets for entry in extracted]), minlength=buckets)
    idf = np.log((1 + len(extracted)) / (1 + seen)) + 1
    return np.where(seen > 0, idf, 0.0).astype(np.float32)
