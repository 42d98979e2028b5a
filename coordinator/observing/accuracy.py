"""Accuracy of the predictions: what was predicted when an expert was chosen, against what was measured. PURE.

Compared are the last requests that were answered, each in two ways:

- `planned`: the prediction that the choice was made with. Where the client set no limit, it was made for an assumed
  length of the answer; where the model ended by itself, for a longer answer than came.
- `decoded`: the same prediction (the same expert's report, the same requests in flight, the same queue, the same
  estimate of the prompt) for the number of tokens that were really decoded. The length of an answer cannot be known
  beforehand, so this one shows what the cost models are worth.

Seconds are the coordinator's: from the submission to the expert that answered, to the first token and to the end.
Joules are those of that expert's work. Requests are counted apart if their joules are unknown, a lower bound, or from
too few samples for a single request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import median

import msgspec
import numpy as np

from moe2.common.cost import Quantiles
from moe2.common.energy import Energy, Quality, worst_quality
from moe2.common.health import HealthWarning, Severity
from moe2.coordinator.choosing.forecast import Prediction, Roster
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import Purpose
from moe2.coordinator.serving.effects import Completed
from moe2.coordinator.serving.life import Lifecycle

WINDOW = 500
"""The number of answered requests that are looked back on."""
_COMPARABLE = (Quality.MEASURED_COUNTER, Quality.MEASURED_INTEGRATED, Quality.SIMULATED)
_FEWEST_SAMPLES = 3
"""The fewest power samples within one request for which its joules are compared.

With fewer, the joules are the sampling's as much as the request's own.
"""
_ENOUGH_TO_WARN = 50
_MIN_COVERAGE_PCT = 85.0
"""The coverage below which the p95 of a prediction is warned of.

Fifty predictions of 95 % coverage are below this about once in 250 times (binomial).
"""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """The agreement of one quantity's predictions with its measurements. Figures are None where `n` is 0."""

    n: int
    """Requests with both a prediction and a measurement."""
    median_abs_error_pct: float | None
    """Median of |p50 - measured| / measured."""
    p50_coverage_pct: float | None
    """Share of the requests that stayed within the predicted p50; 50 if the quantile is right."""
    p95_coverage_pct: float | None
    """Share of the requests that stayed within the predicted p95; 95 if the quantile is right."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The agreement of one quantity, as planned and for the decoded tokens, and the requests left out of it."""

    planned: Agreement
    decoded: Agreement
    n_unpredicted: int
    """Requests whose expert had not been measured when it was chosen."""
    n_unmeasured: int
    """Requests of which the quantity was not measured."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison of one expert's requests, or of all experts' together (expert and agent None)."""

    expert: str | None
    agent: str | None
    n_requests: int
    ttft_s: Comparison
    total_s: Comparison
    energy_j: Comparison
    energy_quality: Quality | None
    """The worst quality of the measurements that `energy_j` was compared with; None without any."""


class CalibrationReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `moe2-coordinator status --calibration` shows."""

    window: int
    """The largest number of requests that is looked back on."""
    overall: Calibration
    experts: tuple[Calibration, ...]
    warnings: tuple[HealthWarning, ...]


class _Record(msgspec.Struct, frozen=True):
    """An answered request, with its expert's report as it was when the expert was chosen."""

    expert: Expert
    prediction: Prediction
    decoded_tokens: int
    ttft_s: float | None
    total_s: float
    energy: Energy

    @property
    def busy(self) -> int:
        """The number of requests that the expert was working on already."""
        shape = self.prediction.shape
        if shape.queued_ahead is None:
            return int(shape.occupancy) - 1
        return shape.queued_ahead + self.expert.report.slots


class CalibrationWindow:
    """The memory of the last answered requests, from which `report` compares predictions with measurements."""

    def __init__(self, window: int = WINDOW) -> None:
        self._records: deque[_Record] = deque(maxlen=window)
        self._window = window

    def request_retired(self, life: Lifecycle) -> None:
        """Remembers an answered request, once everything that it spent is known; passes over all others."""
        if not isinstance(life.outcome, Completed) or life.concluded_s is None:
            return
        attempt = life.leading
        # A panel's seconds are not those of one of its members, and two authors in turn say nothing about either.
        if attempt is None or attempt.purpose is not Purpose.ANSWER or len(life.authors) > 1:
            return
        if attempt.state is not AttemptState.ANSWERED or attempt.usage is None or not attempt.usage.decoded_tokens:
            return
        began_s = attempt.submitted_s
        self._records.append(
            _Record(
                expert=attempt.expert,
                prediction=attempt.prediction,
                decoded_tokens=attempt.usage.decoded_tokens,
                ttft_s=None if life.first_token_s is None else life.first_token_s - began_s,
                total_s=life.concluded_s - began_s,
                energy=attempt.usage.energy,
            )
        )

    def report(self, last: int = WINDOW) -> CalibrationReport:
        """Compares the last so many requests that are remembered. It takes about 10 ms for 500 of them."""
        records = tuple(self._records)[-last:]
        compared = list(zip(records, _for_decoded(records), strict=True))
        keys = sorted({record.expert.key for record, _ in compared})
        experts = tuple(
            _calibration([pair for pair in compared if pair[0].expert.key == key], of_one=True) for key in keys
        )
        return CalibrationReport(
            window=self._window,
            overall=_calibration(compared, of_one=False),
            experts=experts,
            warnings=tuple(_warnings(experts)),
        )


_Compared = tuple[_Record, Prediction]


def _for_decoded(records: Sequence[_Record]) -> list[Prediction]:
    """Returns each record's prediction for the number of tokens that were really decoded."""
    if not records:
        return []
    forecast = Roster([record.expert for record in records]).forecast(
        np.array([record.prediction.shape.prompt_tokens for record in records]),
        np.array([record.decoded_tokens for record in records]),
        np.array([record.busy for record in records]),
        np.array([record.prediction.shape.cached_tokens for record in records]),
        unread_tokens=np.array([record.prediction.shape.unread_tokens or 0.0 for record in records]),
        # None, which is unknown, becomes NaN.
        to_write_tokens=np.array([record.prediction.shape.to_write_tokens for record in records], dtype=np.float64),
    )
    return [
        # One that was made for this length is kept: in a panel, it may hold more than the expert's own work.
        record.prediction
        if record.decoded_tokens == record.prediction.shape.decoded_tokens and record.prediction.longest_tokens is None
        else forecast.prediction(place)
        for place, record in enumerate(records)
    ]


def _calibration(compared: Sequence[_Compared], *, of_one: bool) -> Calibration:
    expert = compared[-1][0].expert if of_one else None
    qualities = [record.energy.quality for record, _ in compared if _joules(record) is not None]
    return Calibration(
        expert=expert.key if expert else None,
        agent=expert.agent_name if expert else None,
        n_requests=len(compared),
        ttft_s=_comparison(compared, lambda prediction: prediction.ttft_s, lambda record: record.ttft_s),
        total_s=_comparison(compared, lambda prediction: prediction.total_s, lambda record: record.total_s),
        energy_j=_comparison(compared, lambda prediction: prediction.energy_j, _joules),
        energy_quality=worst_quality(qualities) if qualities else None,
    )


def _comparison(
    compared: Sequence[_Compared],
    predicted: Callable[[Prediction], Quantiles | None],
    measured: Callable[[_Record], float | None],
) -> Comparison:
    planned: list[tuple[Quantiles, float]] = []
    decoded: list[tuple[Quantiles, float]] = []
    n_unpredicted = n_unmeasured = 0
    for record, for_decoded in compared:
        actual, before, after = measured(record), predicted(record.prediction), predicted(for_decoded)
        if actual is None or actual <= 0:
            n_unmeasured += 1
        elif before is None or after is None:
            n_unpredicted += 1
        else:
            planned.append((before, actual))
            decoded.append((after, actual))
    return Comparison(
        planned=_agreement(planned),
        decoded=_agreement(decoded),
        n_unpredicted=n_unpredicted,
        n_unmeasured=n_unmeasured,
    )


def _agreement(pairs: Sequence[tuple[Quantiles, float]]) -> Agreement:
    if not pairs:
        return Agreement(n=0, median_abs_error_pct=None, p50_coverage_pct=None, p95_coverage_pct=None)
    return Agreement(
        n=len(pairs),
        median_abs_error_pct=100 * median(abs(quantiles.p50 - actual) / actual for quantiles, actual in pairs),
        p50_coverage_pct=_share_pct(actual <= quantiles.p50 for quantiles, actual in pairs),
        p95_coverage_pct=_share_pct(actual <= quantiles.p95 for quantiles, actual in pairs),
    )


def _share_pct(holds: Iterable[bool]) -> float:
    found = list(holds)
    return 100 * sum(found) / len(found)


def _joules(record: _Record) -> float | None:
    """Returns the record's joules if a prediction can be compared with them, otherwise None."""
    energy = record.energy
    if energy.quality not in _COMPARABLE or (energy.n_samples is not None and energy.n_samples < _FEWEST_SAMPLES):
        return None
    return energy.joules


def _warnings(experts: Iterable[Calibration]) -> Iterable[HealthWarning]:
    """Yields a warning for each expert whose p95 does not hold, since budgets rely on it."""
    for expert in experts:
        for what, comparison in (("seconds", expert.total_s), ("joules", expert.energy_j)):
            agreement = comparison.decoded
            covered_pct = agreement.p95_coverage_pct
            if covered_pct is not None and agreement.n >= _ENOUGH_TO_WARN and covered_pct < _MIN_COVERAGE_PCT:
                yield HealthWarning(
                    code="predictions_too_low",
                    severity=Severity.NOTICE,
                    message=f"{expert.expert} on {expert.agent} took more {what} than its p95 in"
                    f" {100 - covered_pct:.0f} % of {agreement.n} requests.",
                    remedy="Find what else uses that host, or give budgets some room until its load is steady.",
                )
