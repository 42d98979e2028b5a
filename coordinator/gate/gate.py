"""The trained gate, served with numpy alone: it turns a prompt into one probability and one logit per expert. PURE.

Its arithmetic is that of `training.network`, with the networks of several seeds folded into one wider network:
embeddings and hidden units stand side by side, heads are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gate.calibration import log_odds_of, sigmoid
from moe2.coordinator.gate.features import SHAPE_SIZE, FeatureConfig, FeatureExtractor, PromptFeatures
from moe2.coordinator.gate.votes import VoteRecord

FloatArray = npt.NDArray[np.float32]
_GELU = np.float32(np.sqrt(2 / np.pi))
_SHAPE_LIMIT = 4.0
"""Standardised shape features are clipped here, so that one odd prompt cannot drive the network out of its range."""


@dataclass(frozen=True)
class GateParameters:
    """The parameters of the forward pass. Raises ValueError for shapes that do not fit, or figures that are not finite.

    Their sizes are D buckets, W embedding dimensions, H hidden units, K kinds of prompts, N experts, and Z numbers of a
    prompt's shape (`features.SHAPE_SIZE`).
    """

    idf: FloatArray
    """(D,) inverse document frequency of each bucket; 0 for buckets never seen."""
    embedding: FloatArray
    """(D, W)"""
    shape_mean: FloatArray
    """(Z,)"""
    shape_scale: FloatArray
    """(Z,) what standardised shape features are multiplied by."""
    hidden_weight: FloatArray
    """(H, W + Z)"""
    hidden_bias: FloatArray
    """(H,)"""
    task_weight: FloatArray
    """(K, H)"""
    task_bias: FloatArray
    """(K,)"""
    residual_weight: FloatArray
    """(N, H), the residual's scale included."""
    residual_bias: FloatArray
    """(N,), the residual's scale included."""
    profile: FloatArray
    """(K, N) mean score of each expert on each kind of prompt, shrunk."""
    calibration_slope: FloatArray
    """(N,)"""
    calibration_offset: FloatArray
    """(N,)"""

    def __post_init__(self) -> None:
        buckets, width = self.embedding.shape
        numbers = self.shape_mean.size
        hidden, kinds, experts = self.hidden_bias.size, self.task_bias.size, self.residual_bias.size
        expected = {
            "idf": (buckets,),
            "shape_mean": (numbers,),
            "shape_scale": (numbers,),
            "hidden_weight": (hidden, width + numbers),
            "task_weight": (kinds, hidden),
            "residual_weight": (experts, hidden),
            "profile": (kinds, experts),
            "calibration_slope": (experts,),
            "calibration_offset": (experts,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        for entry in fields(self):
            if not np.isfinite(getattr(self, entry.name)).all():
                raise ValueError(f"{entry.name} holds values that are not finite")


@dataclass(frozen=True)
class GatePrediction:
    """The gate's prediction for one prompt, over N experts and K kinds of prompts."""

    probabilities: npt.NDArray[np.float64]
    """(N,) calibrated probability that each expert answers well."""
    logits: npt.NDArray[np.float64]
    """(N,) a softmax over any subset of these gives that subset's optimal weights."""
    kinds: npt.NDArray[np.float64]
    """(K,) probability of each kind of prompt seen in training."""
    by_scoring: npt.NDArray[np.float64] | None = None
    """(N,) probability that each expert is right where it scores given options; None where nobody was asked so."""
    answer_tokens: npt.NDArray[np.float64] | None = None
    """(N,) expected length of each expert's answer in tokens, NaN where unknown; None where no length is known."""


def weighted_counts(features: PromptFeatures, idf: FloatArray) -> FloatArray:
    """(k,) the tf-idf weight of each bucket of a prompt: (1 + log count) * idf, scaled to unit length unless all 0."""
    values = (1 + np.log(features.counts)) * idf[features.buckets]
    norm = float(np.sqrt(values @ values))
    return np.asarray(values / norm if norm > 0 else values, dtype=np.float32)


def standardised_shape(shape: FloatArray, mean: FloatArray, scale: FloatArray) -> FloatArray:
    """(..., Z) a prompt's shape features at zero mean and unit scale, clipped."""
    return np.asarray(np.clip((shape - mean) * scale, -_SHAPE_LIMIT, _SHAPE_LIMIT), dtype=np.float32)


class Gate:
    """A trained gate. It is immutable, so that any thread may call `predict`.

    experts: names in the order of the outputs. tau: temperature of the logits. votes: what the outcomes say of the
    experts' votes; None where they hold no answers. by_scoring: (K, N) mean score of each expert on each kind of prompt
    where it scores given options; None where no expert was asked so. files: SHA-256 of experts' files by name, where it
    is known what file an expert was. answer_tokens: (K, N) mean length of each expert's answers to each kind of prompt,
    NaN for an expert of which none is known; None where no length is. Raises ValueError where the parameters, the
    features, the experts and the rest do not fit together.
    """

    def __init__(
        self,
        parameters: GateParameters,
        config: FeatureConfig,
        experts: Sequence[str],
        tau: float,
        votes: VoteRecord | None = None,
        by_scoring: npt.NDArray[np.float64] | None = None,
        files: Mapping[str, str] = MappingProxyType({}),
        answer_tokens: npt.NDArray[np.float64] | None = None,
    ) -> None:
        if parameters.embedding.shape[0] != config.buckets:
            raise ValueError(f"{parameters.embedding.shape[0]} embedding rows for {config.buckets} buckets")
        if parameters.shape_mean.size != SHAPE_SIZE:
            raise ValueError(f"{parameters.shape_mean.size} shape features for {SHAPE_SIZE}")
        if parameters.residual_bias.size != len(experts):
            raise ValueError(f"parameters for {parameters.residual_bias.size} experts, but {len(experts)} names")
        if votes is not None and votes.base.size != len(experts):
            raise ValueError(f"votes of {votes.base.size} experts, but {len(experts)} names")
        if by_scoring is not None and not (
            by_scoring.shape == parameters.profile.shape and ((by_scoring >= 0) & (by_scoring <= 1)).all()
        ):
            raise ValueError("the scores by scoring options are not probabilities by kind and expert")
        if answer_tokens is not None and not (
            answer_tokens.shape == parameters.profile.shape
            and not np.isinf(answer_tokens).any()
            and (np.isnan(answer_tokens) | (answer_tokens >= 0)).all()
        ):
            raise ValueError("the lengths of answers are not numbers of tokens by kind and expert")
        if tau <= 0:
            raise ValueError(f"tau must be positive, not {tau}")
        self.experts = tuple(experts)
        self.files = tuple(files.get(name) for name in experts)
        self.tau = tau
        self.votes = votes
        self.by_scoring = by_scoring
        self.answer_tokens = answer_tokens
        self.parameters = parameters
        self.feature_config = config
        self.extractor = FeatureExtractor(config)

    def predict(self, prompt: str, kind: int | None = None) -> GatePrediction:
        """The gate's prediction for one prompt. kind: place of the prompt's kind; None lets the gate find it."""
        return self.predict_features(self.extractor.extract(prompt), kind)

    def predict_features(self, features: PromptFeatures, kind: int | None = None) -> GatePrediction:
        """The gate's prediction for a prompt whose features are given. kind: as in `predict`."""
        task_logits, residual = self.heads(features)
        if kind is None:
            posterior = np.exp(task_logits - task_logits.max())
            posterior /= posterior.sum()
        else:
            posterior = np.zeros_like(task_logits)
            posterior[kind] = 1.0
        raw = log_odds_of(posterior @ self.parameters.profile) + residual
        p = sigmoid(self.parameters.calibration_slope * raw + self.parameters.calibration_offset)
        kinds = posterior.astype(np.float64)
        by_scoring = None if self.by_scoring is None else np.asarray(kinds @ self.by_scoring)
        tokens = None if self.answer_tokens is None else np.asarray(kinds @ self.answer_tokens)
        return GatePrediction(p, p / self.tau, kinds, by_scoring=by_scoring, answer_tokens=tokens)

    def heads(self, features: PromptFeatures) -> tuple[FloatArray, FloatArray]:
        """The task logits (K,) and the residual (N,) of one prompt."""
        p = self.parameters
        bag = weighted_counts(features, p.idf) @ p.embedding[features.buckets]
        joined = np.concatenate([bag, standardised_shape(features.shape, p.shape_mean, p.shape_scale)])
        hidden = _gelu(p.hidden_weight @ joined + p.hidden_bias)
        return p.task_weight @ hidden + p.task_bias, p.residual_weight @ hidden + p.residual_bias


def _gelu(x: FloatArray) -> FloatArray:
    """The GELU activation in its tanh form (Hendrycks and Gimpel 2016)."""
    return np.asarray(0.5 * x * (1 + np.tanh(_GELU * (x + np.float32(0.044715) * x**3))), dtype=np.float32)
