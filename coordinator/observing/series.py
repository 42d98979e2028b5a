"""Counters and histograms of plain numbers, which become Prometheus's series when somebody scrapes.

The library's own take a lock for each number of a series, and a request moves twenty. These belong to one thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counter(Collector):
    """A counter with a series for each set of its labels' values; one without labels is 0 from the start."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._counted = defaultdict[tuple[str, ...], float](float, {} if labels else {(): 0.0})

    def add(self, amount: float, *values: str) -> None:
        """Adds an amount, which is never below 0. values: those of the labels, in their order."""
        self._counted[values] += amount

    def collect(self) -> Iterator[Metric]:
        """Yields the counter with all its series."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, counted in self._counted.items():
            family.add_metric(values, counted)
        yield family


class Histogram(Collector):
    """A histogram without labels. bounds: the upper ones of its buckets but for the last, which has none; ascending."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float | None) -> None:
        """Adds an observation if it is known and finite: an infinite one has no place in a sum."""
        if value is None or not -inf < value < inf:
            return
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """Yields the histogram; a bucket counts what the smaller ones do, too."""
        names = map(floatToGoString, (*self._bounds, inf))
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)
