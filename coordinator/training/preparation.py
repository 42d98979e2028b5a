"""Preparation of train rows for the network: their features, kinds and scores, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from moe2.coordinator.gate.features import FeatureConfig, FeatureExtractor, PromptFeatures
from moe2.coordinator.gate.gate import standardised_shape, weighted_counts
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.network import Batch
from moe2.coordinator.training.outcomes import Outcomes
from moe2.coordinator.training.profile import shrunk_profile

IndexArray = npt.NDArray[np.int64]


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
