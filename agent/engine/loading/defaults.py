"""PURE: what a model draws with where a request leaves it open: as configured, else as its file says, else as usual.

GGUF files can carry the values that a model's makers recommend, under `general.sampling.*` (llama.cpp's names).
"""

from __future__ import annotations

import contextlib
import math

import msgspec

from moe2.agent.engine.llama.memory import Metadata
from moe2.common.generation import MAX_TOP_K, USUAL_SAMPLING, Sampling, overlaid

_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
}


def defaults_of(configured: Sampling, metadata: Metadata) -> Sampling:
    """Returns the values that a model draws with by default, none of them open.

    configured: the operator's, with None where there is none. metadata: of the model's file.
    """
    return overlaid(overlaid(configured, recommended(metadata)), USUAL_SAMPLING)


def recommended(metadata: Metadata) -> Sampling:
    """Returns what a GGUF file recommends; None for what it does not name, or names with a value out of bounds."""
    found = Sampling()
    for name, key in _KEYS.items():
        # A file may say anything; what no request could ask for is left out.
        with contextlib.suppress(ValueError, msgspec.ValidationError):
            one = msgspec.convert({name: _number(name, metadata(key) or "")}, Sampling)
            found = overlaid(found, one)
    return found


def _number(name: str, text: str) -> float | int:
    """Raises `ValueError` where the text is no number."""
    value = float(text)
    if math.isnan(value):
        raise ValueError(text)
    if name != "top_k":
        return value
    # llama.cpp reads 0 and less as "all tokens".
    return int(value) if 0 < value < MAX_TOP_K else MAX_TOP_K
