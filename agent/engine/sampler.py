"""Drawing the next token, by llama.cpp's sampler chains. A door to llama.cpp."""

from __future__ import annotations

import math
import secrets

import numpy as np
from llama_cpp import llama_cpp as llama

from moe2.agent.engine.context import Context
from moe2.agent.engine.model import Model
from moe2.common.errors import Moe2Error
from moe2.common.messages import Sampling

_SEEDS = 2**32 - 1
"""llama.cpp takes 32 bits and reads the largest value as "draw one"."""


class SamplingError(Moe2Error):
    """Sampling parameters that make no sense."""


class Sampler:
    """One job's sampler. Without penalties and biases, temperature 0 is a plain argmax and needs no chain."""

    def __init__(self, model: Model, sampling: Sampling, *, history_tokens: int) -> None:
        """`history_tokens`: how far back penalties look, in generated tokens. Raises `SamplingError`."""
        check_sampling(sampling, vocabulary_size=model.vocabulary_size)
        self._chain = None
        penalised = bool(sampling.frequency_penalty or sampling.presence_penalty)
        if sampling.temperature == 0 and not penalised and not sampling.logit_bias:
            return
        parameters = llama.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self._chain = llama.llama_sampler_chain_init(parameters)
        if sampling.logit_bias:
            self._add(_bias(model, sampling.logit_bias))
        if penalised:
            self._add(
                llama.llama_sampler_init_penalties(
                    model.vocabulary_size,
                    history_tokens,
                    1.0,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        if sampling.temperature == 0:
            self._add(llama.llama_sampler_init_greedy())
            return
        if sampling.top_k:
            self._add(llama.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            self._add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p:
            self._add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.temperature != 1:
            self._add(llama.llama_sampler_init_temp(sampling.temperature))
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        self._add(llama.llama_sampler_init_dist(seed))

    def _add(self, sampler: llama.llama_sampler_p) -> None:
        llama.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: Context, place: int) -> int:
        """Draw a token from the logits at `place` of the last batch, and remember it for the penalties."""
        if self._chain is None:
            return int(np.argmax(context.logits(place)))
        token: int = llama.llama_sampler_sample(self._chain, context.pointer, place)
        return token

    def close(self) -> None:
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def check_sampling(sampling: Sampling, *, vocabulary_size: int) -> None:
    """Raises `SamplingError` naming the first parameter that makes no sense, its value and its range."""
    _between("temperature", sampling.temperature, 0, 100)
    _between("top_p", sampling.top_p, 0, 1)
    _between("min_p", sampling.min_p or 0.0, 0, 1)
    _between("top_k", sampling.top_k or 0, 0, 2**31 - 1)
    _between("frequency_penalty", sampling.frequency_penalty, -2, 2)
    _between("presence_penalty", sampling.presence_penalty, -2, 2)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary_size:
            raise SamplingError(
                f"logit_bias names token {token}, but this model's tokens are 0 to {vocabulary_size - 1}."
            )
        _between(f"logit_bias of token {token}", bias, -100, 100)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise SamplingError(f"{name} is {value}, but must be between {low:g} and {high:g}.")


def _bias(model: Model, biases: dict[int, float]) -> llama.llama_sampler_p:
    entries = (llama.llama_logit_bias * len(biases))(
        *(llama.llama_logit_bias(token=token, bias=bias) for token, bias in biases.items())
    )
    sampler: llama.llama_sampler_p = llama.llama_sampler_init_logit_bias(model.vocabulary_size, len(biases), entries)
    return sampler
