"""A sentence encoder's arithmetic: BERT's forward pass over one text, mean-pooled to a unit vector. Pure: numpy only.

Devlin et al., "BERT", NAACL 2019, with the sizes of MiniLM (Wang et al., NeurIPS 2020); pooling as in Reimers and
Gurevych, "Sentence-BERT", EMNLP 2019. One text at a time needs neither padding nor a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_LAYER_NORM_FLOOR = np.float32(1e-12)


class Transformer:
    """An encoder's weights by the names that BERT's checkpoints give them. Immutable; safe to share.

    tensors: float32. heads: attention heads. Raises KeyError for a missing tensor.
    """

    def __init__(self, tensors: Mapping[str, FloatArray], *, layers: int, heads: int) -> None:
        self._tensors = tensors
        self._heads = heads
        self._layers = [_Layer(tensors, f"encoder.layer.{number}.", heads) for number in range(layers)]
        places = tensors["embeddings.position_embeddings.weight"]
        # Every text is one segment, so its type's vector is part of each place's.
        self._places = places + tensors["embeddings.token_type_embeddings.weight"][0]
        self._words = tensors["embeddings.word_embeddings.weight"]
        self._scale = tensors["embeddings.LayerNorm.weight"]
        self._shift = tensors["embeddings.LayerNorm.bias"]

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return int(self._words.shape[1])

    def embed(self, tokens: Sequence[int]) -> FloatArray:
        """(width,) unit vector of a text's tokens, special ones included; at most as many as there are places."""
        ids = np.asarray(tokens, dtype=np.intp)
        x = _normed(self._words[ids] + self._places[: ids.size], self._scale, self._shift)
        for layer in self._layers:
            x = layer(x)
        mean = x.mean(axis=0)
        return np.asarray(mean / np.sqrt(mean @ mean), dtype=np.float32)


class _Layer:
    """Self-attention, then two dense maps, each with a residual and a layer norm."""

    def __init__(self, tensors: Mapping[str, FloatArray], prefix: str, heads: int) -> None:
        self._heads = heads
        query, key, value = (f"{prefix}attention.self.{name}." for name in ("query", "key", "value"))
        self._in_weight = _transposed(*(tensors[f"{part}weight"] for part in (query, key, value)))
        self._in_bias = np.concatenate([tensors[f"{part}bias"] for part in (query, key, value)])
        attention, inner, outer = (f"{prefix}{name}." for name in ("attention.output", "intermediate", "output"))
        self._mix_weight, self._mix_bias = (
            _transposed(tensors[f"{attention}dense.weight"]),
            tensors[f"{attention}dense.bias"],
        )
        self._mix_norm = tensors[f"{attention}LayerNorm.weight"], tensors[f"{attention}LayerNorm.bias"]
        self._up_weight, self._up_bias = _transposed(tensors[f"{inner}dense.weight"]), tensors[f"{inner}dense.bias"]
        self._down_weight, self._down_bias = _transposed(tensors[f"{outer}dense.weight"]), tensors[f"{outer}dense.bias"]
        self._out_norm = tensors[f"{outer}LayerNorm.weight"], tensors[f"{outer}LayerNorm.bias"]

    def __call__(self, x: FloatArray) -> FloatArray:
        """(tokens, width) of (tokens, width)."""
        tokens, width = x.shape
        parts = (x @ self._in_weight + self._in_bias).reshape(tokens, 3, self._heads, -1)
        query, key, value = parts.transpose(1, 2, 0, 3)
        scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ value).transpose(1, 0, 2).reshape(tokens, width)
        x = _normed(x + mixed @ self._mix_weight + self._mix_bias, *self._mix_norm)
        inner = gelu(x @ self._up_weight + self._up_bias)
        return _normed(x + inner @ self._down_weight + self._down_bias, *self._out_norm)


def gelu(x: FloatArray) -> FloatArray:
    """x Phi(x), with the error function to 1.5e-7 (Abramowitz and Stegun, formula 7.1.26)."""
    size = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * size)
    tail = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail *= t
        tail += np.float32(coefficient)
    tail *= t * np.exp(-size * size)  # 1 - erf(|x| / sqrt 2)
    return np.asarray(np.where(x > 0, x - 0.5 * x * tail, 0.5 * x * tail), dtype=np.float32)


def _normed(x: FloatArray, scale: FloatArray, shift: FloatArray) -> FloatArray:
    """Rows at zero mean and unit variance, then scaled and shifted."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("ij,ij->i", centred, centred)[:, None] / np.float32(x.shape[1])
    return np.asarray(centred / np.sqrt(variance + _LAYER_NORM_FLOOR) * scale + shift, dtype=np.float32)


def _transposed(*weights: FloatArray) -> FloatArray:
    """Dense weights (out, in), one under the other, as the (in, out) that rows of activations are multiplied by."""
    return np.ascontiguousarray(np.concatenate(weights).T)
