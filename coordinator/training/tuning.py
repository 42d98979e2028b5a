"""What tuning a fleet will take, and what it has gained: the arithmetic of `moe2-coordinator tune`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.training.collect.outfile import Answered
from moe2.coordinator.training.collect.questions import Question
from moe2.coordinator.training.collect.survey import Report
from moe2.coordinator.training.gain import Gain, best_single, chosen_scores, gain_of
from moe2.coordinator.training.outcomes import MIN_ROWS, Outcomes, split_of

FloatArray = npt.NDArray[np.float64]

EXPECTED_TOKENS = 48
"""Length that an answer to a short question is reckoned with before it is known."""
FOLDS = 5
DEARER = 2.0
"""An answer that is being asked for is reckoned with as many times the joules of the dearest one that is known.

What an answer takes varies with its length and with what else its host does, so that the dearest one so far is seldom
the dearest of all."""
SAME_PRIOR = 1e-9
"""Scores of the running coordinator that differ by less are the same, such as those of models of one size."""


@dataclass(frozen=True)
class ExpertLoad:
    """The requests that one expert is to answer, and what each is predicted to take."""

    agent: str
    requests: int
    joules: float | None
    """Joules of one request; None where they have never been measured."""
    seconds: float | None
    """Seconds of one request; None where they have never been measured."""
    dearest_j: float = 0.0
    """Joules of the dearest answer to one question so far; 0 where there is none."""


def dearest_j(answers: Iterable[Answered]) -> float:
    """The joules of the dearest of these answers, as far as they were measured; 0 for none."""
    return max((sum(joules or 0.0 for joules in answer.joules_of_requests) for answer in answers), default=0.0)


def costs_of(answers: Iterable[Answered]) -> tuple[float | None, float | None]:
    """The mean joules and seconds of a request among these answers; each None where one of them was not measured."""
    joules: list[float | None] = []
    seconds: list[float | None] = []
    for answer in answers:
        joules += answer.joules_of_requests
        seconds.append(answer.seconds)
        if answer.by_scoring is not None:
            seconds.append(answer.by_scoring.seconds)
    return _known_mean(joules), _known_mean(seconds)


def number_of(count: float, noun: str) -> str:
    """The count with its noun, as in "1 minute" and "0.5 minutes"."""
    return f"{count:,g} {noun}{'' if count == 1 else 's'}"


def check_questions(questions: Sequence[Question]) -> None:
    """Raise Moe2Error where no gate could be trained and compared even if every question were answered."""
    named = [dict(question.labels) for question in questions]
    splits = [label.get("split") or split_of(question.id) for label, question in zip(named, questions, strict=True)]
    kinds = ["/".join(filter(None, (label.get("benchmark"), label.get("domain")))) for label in named]
    folds = _folds(list(zip(splits, kinds, (question.id for question in questions), strict=True)))
    fewest = {split: min(_others(splits, split, folds)) for split in MIN_ROWS}
    if any(fewest[split] < least for split, least in MIN_ROWS.items()):
        raise Moe2Error(
            f"These are too few questions: a gate learns from at least {MIN_ROWS['train']} and is checked by "
            f"at least {MIN_ROWS['val']} others. Here are {splits.count('train')} and {splits.count('val')}, of "
            f"which {fewest['train']} and {fewest['val']} are left while a fifth is held out to tell what is gained.",
            remedy="Add questions, or leave --questions out: moe2 comes with some hundred.",
        )


def _others(splits: Sequence[str], split: str, folds: npt.NDArray[np.int64]) -> list[int]:
    """For each fold, how many questions of `split` are in the others."""
    own = np.array([name == split for name in splits], dtype=np.bool_)
    return [int((own & (folds != fold)).sum()) for fold in range(FOLDS)]


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class Prediction:
    """What a survey is predicted to take. None is unknown."""

    requests: int
    joules: float | None
    """Joules of all requests to experts whose energy is known."""
    seconds: float | None
    """Seconds until the last answer."""
    unmeasured_j: int
    """Number of requests whose joules nobody knows."""


def predicted(loads: Sequence[ExpertLoad], concurrency: int) -> Prediction:
    """What the requests take together: agents work side by side, the experts of one agent one after the other."""
    busy = [load for load in loads if load.requests]
    known_j = [load.requests * load.joules for load in busy if load.joules is not None]
    seconds: float | None = None
    if busy and all(load.seconds is not None for load in busy):
        each = {load.agent: 0.0 for load in busy}
        for load in busy:
            each[load.agent] += load.requests * (load.seconds or 0.0)
        seconds = max(max(each.values()), sum(each.values()) / concurrency)
    return Prediction(
        requests=sum(load.requests for load in busy),
        joules=sum(known_j) if known_j or not busy else None,
        seconds=seconds,
        unmeasured_j=sum(load.requests for load in busy if load.joules is None),
    )


@dataclass(frozen=True)
class Limits:
    """The most that a survey may spend; None for no limit."""

    max_j: float | None = None
    max_s: float | None = None
    spent_j: float = 0.0
    """Joules that were spent before the survey, and count as well."""
    expected_j: float = 0.0
    """Joules of the dearest answer that is known, or expected, before the survey."""

    def reached(self, report: Report, elapsed_s: float) -> str | None:
        """Why no more is to be asked, in words; None where there is room for another answer.

        The limit on joules has to leave room for one more answer and all that are being asked for now, each of them
        `DEARER` times as dear as the dearest answer so far.
        """
        if self.max_s is not None and elapsed_s >= self.max_s:
            return f"the limit of {number_of(self.max_s / 60, 'minute')} is reached"
        if self.max_j is None:
            return None
        if report.unmeasured:
            return "joules are limited, but an expert's joules are not measured; use --max-minutes instead"
        each_j = DEARER * max(report.dearest_j, self.expected_j)
        if self.spent_j + report.joules + (report.asking + 1) * each_j > self.max_j:
            return f"one more answer could go beyond the limit of {self.max_j:g} J"
        return None


@dataclass(frozen=True)
class Comparison:
    """What a gate gains on prompts that it has not learned from. Scores are means from 0 to 1."""

    kinds: tuple[str, ...]
    models: tuple[str, ...]
    by_kind: FloatArray
    """(kinds, models) the mean score of each model on each kind of prompt; NaN where it was not asked."""
    gate_by_kind: FloatArray
    """(kinds,) the mean score of the models that the gate chooses."""
    over_before: Gain
    """The gate over what the coordinator chose before."""
    over_single: Gain
    """The gate over the best single model."""

    @property
    def is_clearly_behind(self) -> bool:
        """True where the gate is behind one of the two by more than its error."""
        return self.over_before.is_clearly_behind or self.over_single.is_clearly_behind


def folds_of(outcomes: Outcomes) -> npt.NDArray[np.int64]:
    """(rows,) the fold, 0 to `FOLDS` - 1, that each row is held out in: every kind and every split in each of them."""
    return _folds(list(zip(outcomes.splits, outcomes.tasks, outcomes.ids, strict=True)))


def _folds(rows: Sequence[tuple[str, str, str]]) -> npt.NDArray[np.int64]:
    """(rows,) the fold of each row, by its split, kind and id, so that all folds have nearly as many of a split."""
    folds = np.empty(len(rows), dtype=np.int64)
    folds[sorted(range(len(rows)), key=rows.__getitem__)] = np.arange(len(rows)) % FOLDS
    return folds


def compared(
    outcomes: Outcomes,
    before: FloatArray,
    fit: Callable[[Outcomes], Gate],
    progress: Callable[[int], None],
    *,
    learned: Collection[str] = (),
) -> Comparison:
    """Compare a gate with what was chosen before and with the best single model, by cross-validation.

    Each row is judged by a gate that was fitted on the other folds, so that all rows count. before: (rows, N) the
    running coordinator's scores of the models. fit: makes a gate of rows. progress: called with the folds done.
    learned: models that a gate judged before which has learned from these very rows. What it says of them is no
    measure for a gate that has not, so that a gate of these models takes its place that was fitted on the other folds.
    """
    folds, before = folds_of(outcomes), before.copy()
    own = np.array([place for place, name in enumerate(outcomes.experts) if name in learned], dtype=np.int64)
    probabilities = np.full(outcomes.scores.shape, np.nan)
    single = np.full(len(outcomes), np.nan)
    for fold in range(FOLDS):
        inside = np.flatnonzero(folds == fold)
        rest = outcomes.take(np.flatnonzero(folds != fold))
        gate = fit(rest)
        probabilities[inside] = _judged(gate, outcomes, inside)
        if own.size:
            is_same = own.size == len(outcomes.experts)
            former = gate if is_same else fit(rest.with_experts([outcomes.experts[place] for place in own]))
            before[np.ix_(inside, own)] = _judged(former, outcomes, inside)
        single[inside] = outcomes.scores[inside, best_single(rest.scores, outcomes.scores[inside])]
        progress(fold + 1)
    chosen = chosen_scores(probabilities, outcomes.scores)
    kinds, labels = tuple(sorted(set(outcomes.tasks))), np.array(outcomes.tasks)
    return Comparison(
        kinds=kinds,
        models=outcomes.experts,
        by_kind=np.array([[_mean(column) for column in outcomes.scores[labels == kind].T] for kind in kinds]),
        gate_by_kind=np.array([_mean(chosen[labels == kind]) for kind in kinds]),
        over_before=gain_of(chosen, tied_scores(before, outcomes.scores)),
        over_single=gain_of(chosen, single),
    )


def _judged(gate: Gate, outcomes: Outcomes, rows: npt.NDArray[np.int64]) -> FloatArray:
    """(rows, experts of the gate) how likely each is right."""
    return np.array([gate.predict(outcomes.prompts[row]).probabilities for row in rows], dtype=np.float64)


def tied_scores(believed: FloatArray, scores: FloatArray) -> FloatArray:
    """(rows,) the mean score of the models that are believed best on each row; NaN where none was run or believed in.

    believed, scores: (rows, N). Models of one prior are believed in alike, and load decides among them.
    """
    masked = np.where(np.isnan(scores) | np.isnan(believed), -np.inf, believed)
    best = masked.max(axis=1, keepdims=True)
    tied = (masked >= best - SAME_PRIOR) & np.isfinite(masked)
    count = tied.sum(axis=1)
    total = np.where(tied, np.nan_to_num(scores), 0.0).sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan), dtype=np.float64)


def believed_scores(outcomes: Outcomes, said: Sequence[Mapping[str, float]]) -> FloatArray:
    """(rows, N) the coordinator's scores of the models from what it said for each row, by model; NaN where nothing."""
    return np.array([[row.get(name, np.nan) for name in outcomes.experts] for row in said], dtype=np.float64)


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
