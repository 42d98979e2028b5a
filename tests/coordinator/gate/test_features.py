"""Prompt features."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.gate.features import SHAPE_SIZE, FeatureConfig, FeatureExtractor

EXTRACTOR = FeatureExtractor(FeatureConfig())


@given(st.text())
def test_any_text_gives_finite_features(prompt: str) -> None:
    """Every string, odd code points included, gives finite features of the promised shapes."""
    features = EXTRACTOR.extract(prompt)
    assert features.shape.shape == (SHAPE_SIZE,)
    assert np.isfinite(features.shape).all()
    assert features.buckets.shape == features.counts.shape
    assert (features.counts >= 1).all()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_buckets_are_ascending_and_in_range(prompt: str) -> None:
    """Buckets come sorted, each once, and below the configured number."""
    buckets = EXTRACTOR.extract(prompt).buckets
    assert (np.diff(buckets) > 0).all()
    assert buckets.size == 0 or (buckets[0] >= 0 and buckets[-1] < EXTRACTOR.config.buckets)


def test_lone_surrogates_are_accepted() -> None:
    """A string that is no valid Unicode text still has features."""
    assert EXTRACTOR.extract("a\ud800b").buckets.size > 0


def test_counts_add_up_to_all_ngrams() -> None:
    """A text of 9 bytes in two words has 7 + 6 + 5 character n-grams, 2 words and 1 word pair."""
    assert EXTRACTOR.extract("abcd efgh").counts.sum() == 7 + 6 + 5 + 2 + 1


def test_an_ngram_hashes_alike_wherever_it_stands() -> None:
    """The hash of a word does not depend on its position."""
    words = FeatureExtractor(FeatureConfig(character_orders=(), word_orders=(1,)))
    alone = words.extract("zebra").buckets
    assert alone.size == 1
    assert alone[0] in words.extract("the quick brown zebra, again").buckets


def test_hashing_matches_a_plain_reference() -> None:
    """The vectorised rolling hash equals the sum it stands for, computed with Python's integers."""
    config = FeatureConfig(character_orders=(3,), word_orders=())
    data = b"hashing!"
    expected = set()
    for start in range(len(data) - 2):
        value = sum((byte + 1) * pow(0x9E3779B97F4A7C15, i, 2**64) for i, byte in enumerate(data[start : start + 3]))
        value = (value + 3 * 7919) % 2**64
        value ^= value >> 29
        value = value * 0xBF58476D1CE4E5B9 % 2**64
        value ^= value >> 32
        expected.add(value >> (64 - config.bucket_bits))
    assert set(FeatureExtractor(config).extract(data.decode()).buckets.tolist()) == expected


def test_features_of_a_known_prompt_never_change() -> None:
    """A golden value: a change here needs a new FEATURES_VERSION."""
    features = EXTRACTOR.extract("What is 2 + 2?\n(A) 3\n(B) 4")
    assert zlib.crc32(features.buckets.tobytes() + features.counts.tobytes()) == 3319092885
    assert float(features.shape.sum()) == pytest.approx(21.5306, abs=1e-3)


def test_a_long_prompt_is_read_at_both_ends() -> None:
    """The middle of a long prompt does not matter, its head, its tail and its length do."""
    head, tail = "h" * 1536, "t" * 512
    one, other = EXTRACTOR.extract(head + "x" * 9000 + tail), EXTRACTOR.extract(head + "y" * 9000 + tail)
    assert (one.buckets == other.buckets).all()
    assert (one.shape == other.shape).all()
    assert (EXTRACTOR.extract(head + tail).shape != one.shape).any()


def test_option_letters_show_in_the_shape() -> None:
    """Four options and five options look different."""
    four = EXTRACTOR.extract("Which?\n(A) a\n(B) b\n(C) c\n(D) d").shape
    five = EXTRACTOR.extract("Which?\n(A) a\n(B) b\n(C) c\n(D) d\n(E) e").shape
    assert four[18] == pytest.approx(0.4)
    assert five[18] == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", [{"bucket_bits": 0}, {"head_bytes": 0}, {"word_orders": (0,)}])
def test_absurd_configurations_are_refused(wrong: dict[str, int]) -> None:
    """A configuration that could not work is refused at once."""
    with pytest.raises(ValueError, match="must be"):
        FeatureConfig(**wrong)  # type: ignore[arg-type]
