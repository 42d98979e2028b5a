"""Counters and histograms of plain numbers, as Prometheus sees them."""

from __future__ import annotations

from math import inf

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as LibrarysHistogram

from moe2.coordinator.observing.series import Counter, Histogram

BOUNDS = (0.0, 0.5, 2)


def test_a_counter_without_labels_is_0_from_the_start() -> None:
    """One with labels has no series before the first of them is counted."""
    [plain] = Counter("n", "N.").collect()
    [labelled] = Counter("n", "N.", ("a", "b")).collect()
    assert [sample.value for sample in plain.samples] == [0.0]
    assert labelled.samples == []


def test_amounts_add_up_by_labels() -> None:
    """Each set of values is a series of its own."""
    counter = Counter("n", "N.", ("a", "b"))
    for amount, values in ((1, ("x", "y")), (2.5, ("x", "y")), (4, ("x", "z"))):
        counter.add(amount, *values)
    [family] = counter.collect()
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"a": "x", "b": "y"}, 3.5),
        ({"a": "x", "b": "z"}, 4.0),
    ]


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.25, 0.5, 1, 2, 2.0001, 1e300])
def test_a_histogram_tells_what_the_librarys_would(value: float) -> None:
    """An observation on a bound belongs to the bucket below it."""
    own, librarys = CollectorRegistry(), CollectorRegistry()
    mine = Histogram("h", "H.", BOUNDS)
    own.register(mine)
    theirs = LibrarysHistogram("h", "H.", registry=librarys, buckets=BOUNDS)
    for _ in range(2):
        mine.observe(value)
        theirs.observe(value)
    assert generate_latest(own) == b"".join(
        line for line in generate_latest(librarys).splitlines(keepends=True) if b"h_created" not in line
    )


@pytest.mark.parametrize("value", [None, inf, -inf, float("nan")])
def test_what_is_unknown_or_infinite_is_not_observed(value: float | None) -> None:
    """One of them would spoil the sum for good."""
    histogram = Histogram("h", "H.", BOUNDS)
    histogram.observe(value)
    [family] = histogram.collect()
    assert {sample.value for sample in family.samples} == {0.0}
