"""Features of a prompt: hashed word and character n-grams, and its shape. PURE.

`FeatureExtractor` is used in training and in serving, so that both see the same numbers. Everything is vectorised over
the bytes of the prompt; a long prompt is read at its head and tail only, which bounds the time (`benchmarks/gate.py`).

An n-gram's hash is the difference of two prefix hashes (Karp and Rabin, IBM J. Res. Dev. 31, 1987) in arithmetic modulo
2**64, scrambled by a multiply-xorshift, and cut to `bucket_bits`. Hashing replaces a vocabulary as in Weinberger et
al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FEATURES_VERSION: Final = 2
"""Version of the features; it rises whenever a prompt would give other numbers, and older checkpoints are refused."""

_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_SCRAMBLE: Final = np.uint64(0xBF58476D1CE4E5B9)
_CHARACTER_SALT: Final = 7919
_WORD_SALT: Final = 104729
_TWO_64: Final = 1 << 64

_OPTION: Final = re.compile(r"^\(?([A-J])[).] ", re.MULTILINE)
_OPENING_WORDS: Final = (
    *("who", "what", "when", "where", "which", "why", "how", "is", "if", "the", "a", "an"),
    *("let", "write", "find", "in", "explain", "translate", "summarize", "list"),
)
_MARKERS: Final = (
    *("?", "$", "\\", "boxed", "def ", '"""', ">>>", "```", "assert", "____"),
    *("how many", "how much", "function", "none of the above", "http", "import ", "return "),
)
_COUNTED_BYTES: Final = b'=%,"(<{;:+-*/^'

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureConfig:
    """Settings of the features; part of a checkpoint's manifest. Raises ValueError for settings that cannot work."""

    bucket_bits: int = 15
    """The n-grams share 2**bucket_bits buckets."""
    character_orders: tuple[int, ...] = (3, 4, 5)
    """Lengths of the character n-grams, in bytes."""
    word_orders: tuple[int, ...] = (1, 2)
    """Lengths of the word n-grams, in words."""
    head_bytes: int = 1536
    """Bytes of a prompt's start that are read."""
    tail_bytes: int = 512
    """Bytes of a prompt's end that are read, where it is longer."""
    version: int = FEATURES_VERSION

    def __post_init__(self) -> None:
        if not 1 <= self.bucket_bits <= 24:
            raise ValueError(f"bucket_bits must be in 1..24, not {self.bucket_bits}")
        if self.head_bytes < 1 or self.tail_bytes < 0:
            raise ValueError("head_bytes must be at least 1 and tail_bytes at least 0")
        if any(order < 1 for order in (*self.character_orders, *self.word_orders)):
            raise ValueError("n-gram orders must be at least 1")

    @property
    def buckets(self) -> int:
        """The number of buckets."""
        return 1 << self.bucket_bits


@dataclass(frozen=True)
class PromptFeatures:
    """The features of one prompt with n-grams in k buckets."""

    buckets: IndexArray
    """(k,) the buckets that occur, ascending, each once."""
    counts: FloatArray
    """(k,) how often each of these buckets occurs."""
    shape: FloatArray
    """(SHAPE_SIZE,) lengths, character classes and markers, not standardised."""


def _powers(size: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The powers 0..size of the hash's multiplier and their inverses, modulo 2**64; (size + 1,) each."""
    inverse = pow(_MULTIPLIER, -1, _TWO_64)
    power, inverse_power = 1, 1
    powers, inverses = [], []
    for _ in range(size + 1):
        powers.append(power)
        inverses.append(inverse_power)
        power = power * _MULTIPLIER % _TWO_64
        inverse_power = inverse_power * inverse % _TWO_64
    return np.array(powers, dtype=np.uint64), np.array(inverses, dtype=np.uint64)


def _word_bytes() -> npt.NDArray[np.int8]:
    """(256,) 1 for bytes that are part of a word, else 0."""
    table = np.zeros(256, dtype=np.int8)
    table[list(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_\\")] = 1
    table[128:] = 1
    return table


def _scrambled(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The hashes with their bits spread by a multiply-xorshift, so that the upper bits depend on all of them."""
    hashes = hashes ^ (hashes >> np.uint64(29))
    hashes = hashes * _SCRAMBLE
    return hashes ^ (hashes >> np.uint64(32))


class FeatureExtractor:
    """Computes the features of prompts under one configuration. It is immutable, so threads may share it."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self._limit = config.head_bytes + config.tail_bytes
        self._powers, self._inverses = _powers(self._limit)
        self._is_word = _word_bytes()
        self._shift = np.uint64(64 - config.bucket_bits)

    def extract(self, prompt: str) -> PromptFeatures:
        """The features of one prompt, which may be any string, even an empty one or one with lone surrogates."""
        raw = prompt.encode("utf-8", "replace")
        length_bytes = len(raw)
        if length_bytes > self._limit:
            raw = raw[: self.config.head_bytes] + raw[length_bytes - self.config.tail_bytes :]
        hashes = self._hashes(np.frombuffer(raw.lower(), dtype=np.uint8))
        buckets, counts = np.unique((hashes >> self._shift).astype(np.int32), return_counts=True)
        shape = prompt_shape(raw.decode("utf-8", "replace"), raw, length_bytes)
        return PromptFeatures(buckets.astype(np.int64), counts.astype(np.float32), shape)

    def _hashes(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
        """(m,) one 64-bit hash for each of the m occurrences of an n-gram in `data`."""
        size = data.shape[0]
        prefix = np.zeros(size + 1, dtype=np.uint64)
        np.cumsum((data.astype(np.uint64) + np.uint64(1)) * self._powers[:size], out=prefix[1:])
        parts = [np.empty(0, dtype=np.uint64)]
        for order in self.config.character_orders:
            if size >= order:
                spans = (prefix[order:] - prefix[:-order]) * self._inverses[: size - order + 1]
                parts.append(_scrambled(spans + np.uint64(order * _CHARACTER_SALT)))
        edges = np.diff(self._is_word[data], prepend=np.int8(0), append=np.int8(0))
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        words = _scrambled((prefix[ends] - prefix[starts]) * self._inverses[starts] + np.uint64(_WORD_SALT))
        for order in self.config.word_orders:
            count = words.shape[0] - order + 1
            if count < 1:
                continue
            phrase = words[:count]
            for offset in range(1, order):
                phrase = phrase * np.uint64(_MULTIPLIER) + words[offset : offset + count]
            parts.append(phrase)
        return np.concatenate(parts)


def prompt_shape(text: str, raw: bytes, length_bytes: int) -> FloatArray:
    """(SHAPE_SIZE,) the lengths, character classes, option letters and markers of code or maths of a prompt.

    text, raw: the part of the prompt that is read, as text and as UTF-8. length_bytes: the size of the whole prompt.
    """
    size = max(len(raw), 1)
    counts = np.bincount(np.frombuffer(raw, dtype=np.uint8), minlength=256)
    words = text.split()
    lowered = text.lower()
    stripped = text.rstrip()
    marks = list(_OPTION.finditer(text))
    ends = [*(mark.start() for mark in marks), len(text)][1:]
    options = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    stem_size = marks[0].start() if marks else len(text)
    stem = text[:stem_size].rstrip()
    digits, capitals = int(counts[48:58].sum()), int(counts[65:91].sum())
    opening = words[0].lower() if words else ""
    values = [
        np.log1p(length_bytes),
        np.log1p(len(words)),
        np.log1p(counts[10]),
        np.log1p(stem_size),
        np.log1p(len(text) - stem_size),
        *_option_shape(options),
        *(stem.endswith(mark) for mark in "?.:,_"),
        np.log1p(stem.count(". ")),
        len(options) / 10,
        *(len(options) == number for number in (0, 2, 3, 4, 5, 10)),
        digits / size,
        np.log1p(digits),
        capitals / size,
        capitals == 0,
        int(counts[128:].sum()) / size,
        len(text) / max(len(words), 1) / 10,
        len(opening) / 10,
        text[:1].isupper(),
        *(stripped.endswith(mark) for mark in "?.:"),
        *(counts[byte] / size for byte in _COUNTED_BYTES),
        *(marker in lowered for marker in _MARKERS),
        *(opening == word for word in _OPENING_WORDS),
    ]
    return np.array(values, dtype=np.float32)


def _option_shape(options: list[str]) -> tuple[float, ...]:
    """Seven numbers on how the options of a multiple-choice prompt are written; 0 where there are no options."""
    count = len(options)
    if count == 0:
        return (0.0,) * 7
    sizes = [len(option) for option in options]
    return (
        sum(option[:1].isupper() for option in options) / count,
        sum(option[:1].islower() for option in options) / count,
        sum(option.endswith(".") for option in options) / count,
        sum(option[:1].isdigit() for option in options) / count,
        float(np.log1p(sum(sizes) / count)),
        float(np.log1p(max(sizes) - min(sizes))),
        sum(option.count(" ") for option in options) / count / 10,
    )


SHAPE_SIZE: Final = int(prompt_shape("", b"", 0).shape[0])
"""Number of figures that describe a prompt besides its n-grams."""
