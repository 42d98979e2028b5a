"""How alike prompts are: cosine similarity of their tf-idf n-grams, for the nearest-neighbour baseline. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gating.features import FeatureExtractor
from moe2.coordinator.gating.gate import weighted_counts

FloatArray = npt.NDArray[np.float64]


def cosine_similarities(
    wanted: Sequence[str], known: Sequence[str], extractor: FeatureExtractor, idf: npt.NDArray[np.float32]
) -> FloatArray:
    """(len(wanted), len(known)) cosines, 0..1; a prompt without n-grams is like none. idf: (buckets,)."""
    features = [extractor.extract(prompt) for prompt in known]
    buckets = np.concatenate([entry.buckets for entry in features])
    values = np.concatenate([weighted_counts(entry, idf) for entry in features]).astype(np.float64)
    ends = np.cumsum([entry.buckets.size for entry in features])
    starts = np.concatenate([[0], ends[:-1]])
    similarity = np.empty((len(wanted), len(known)))
    dense = np.zeros(extractor.config.buckets)
    for row, prompt in enumerate(wanted):
        entry = extractor.extract(prompt)
        dense[entry.buckets] = weighted_counts(entry, idf)
        sums = np.concatenate([[0.0], np.cumsum(values * dense[buckets])])
        similarity[row] = sums[ends] - sums[starts]
        dense[entry.buckets] = 0.0
    return similarity
