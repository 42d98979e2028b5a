"""Drawing the next token, by llama.cpp's sampler chains. A door to llama.cpp."""

from __future__ import annotations

import ctypes
import secrets
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as llama

from moe2.agent.engine.decoding.distribution import Logits, nucleus
from moe2.agent.engine.llama.context import Context
from moe2.agent.engine.llama.model import Model
from moe2.common.errors import Moe2Error
from moe2.common.generation import CompleteSampling

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_SEEDS = 2**32 - 1
"""llama.cpp takes 32 bits and reads the largest value as "draw one"."""


class SamplingError(Moe2Error):
    """Sampling parameters that make no sense for this model."""


class Sampler:
    """One job's sampler. Without penalties and biases, temperature 0 is a plain argmax and needs no chain."""

    def __init__(self, model: Model, sampling: CompleteSampling, *, history_tokens: int) -> None:
        """`history_tokens`: how far back penalties look, in generated tokens. Raises `SamplingError`."""
        self._steered = _penalises(sampling) or bool(sampling.logit_bias)
        self._top_p: float | None = None
        """Cut here, before the chain: llama.cpp sorts the whole vocabulary for it."""
        if sampling.temperature > 0 and sampling.top_p < 1 and not (self._steered or sampling.top_k):
            self._top_p, sampling = sampling.top_p, msgspec.structs.replace(sampling, top_p=1.0)
        self._chain = (
            None
            if sampling.temperature == 0 and not self._steered
            else _chain(model, sampling, history_tokens=history_tokens)
        )

    def sample(self, context: Context, place: int) -> int:
        """Draw a token from the logits at `place` of the last batch, and remember it for penalties."""
        if self._chain is None:
            return int(context.logits(place).argmax())
        if self._top_p is not None:
            logits = context.logits(place)
            return self._choose(_candidates_of(logits, nucleus(logits, self._top_p)))
        token: int = llama.llama_sampler_sample(self._chain, context.pointer, place)
        return token

    def sample_among(self, logits: Logits, allowed: npt.NDArray[np.intp]) -> int:
        """Draw one of the allowed tokens, of which there is at least one, as if there were no others."""
        if self._chain is None:
            return int(allowed[logits[allowed].argmax()])
        if self._top_p is not None:
            allowed = allowed[nucleus(logits[allowed], self._top_p)]
        token = self._choose(_candidates_of(logits, allowed))
        if self._steered:
            llama.llama_sampler_accept(self._chain, token)
        return token

    def take(self, token: int) -> None:
        """Remember for penalties a token that was not drawn, as there was no choice."""
        if self._steered:
            llama.llama_sampler_accept(self._chain, token)

    def _choose(self, candidates: npt.NDArray[np.void]) -> int:
        """Draw from candidates."""
        # llama.cpp's view of them, valid as long as they live.
        array = llama.llama_token_data_array(
            data=candidates.ctypes.data_as(llama.llama_token_data_p), size=len(candidates), selected=-1, sorted=False
        )
        llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        # Samplers may sort and swap the array: only its own pointer tells which was chosen.
        chosen: Any = array.data[array.selected]
        return int(chosen.id)

    def close(self) -> None:
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def _candidates_of(logits: Logits, tokens: npt.NDArray[np.intp]) -> npt.NDArray[np.void]:
    candidates = np.zeros(len(tokens), _CANDIDATE)
    candidates["id"] = tokens
    candidates["logit"] = logits[tokens]
    return candidates


def _chain(model: Model, sampling: CompleteSampling, *, history_tokens: int) -> llama.llama_sampler_p:
    """Bias and penalties, then what cuts the distribution's tail, then the draw."""
    parts = []
    if sampling.logit_bias:
        parts.append(_bias(model, sampling.logit_bias))
    if _penalises(sampling):
        parts.append(
            llama.llama_sampler_init_penalties(
                model.vocabulary_size,
                history_tokens,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.temperature == 0:
        parts.append(llama.llama_sampler_init_greedy())
    else:
        if sampling.top_k is not None and sampling.top_k < model.vocabulary_size:
            parts.append(llama.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            parts.append(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p:
            parts.append(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.temperature != 1:
            parts.append(llama.llama_sampler_init_temp(sampling.temperature))
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        parts.append(llama.llama_sampler_init_dist(seed))
    parameters = llama.llama_sampler_chain_default_params()
    parameters.no_perf = True
    chain: llama.llama_sampler_p = llama.llama_sampler_chain_init(parameters)
    for part in parts:
        llama.llama_sampler_chain_add(chain, part)
    return chain


def _penalises(sampling: CompleteSampling) -> bool:
    return bool(sampling.frequency_penalty or sampling.presence_penalty or sampling.repeat_penalty != 1)


def _bias(model: Model, biases: dict[int, float]) -> llama.llama_sampler_p:
    """Raises `SamplingError` for a token that the model does not have."""
    if unknown := [token for token in biases if token >= model.vocabulary_size]:
        raise SamplingError(
            f"logit_bias names token {unknown[0]}, but this model's tokens are 0 to {model.vocabulary_size - 1}."
        )
    entries = (llama.llama_logit_bias * len(biases))(
        *(llama.llama_logit_bias(token=token, bias=bias) for token, bias in biases.items())
    )
    sampler: llama.llama_sampler_p = llama.llama_sampler_init_logit_bias(model.vocabulary_size, len(biases), entries)
    return sampler
