"""What `benchmarks.live_frontier` asks under which budgets, and what follows from the answers. PURE."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

import msgspec
import numpy as np

from moe2.common.errors import Moe2Error
from moe2.coordinator.answers.form import LETTERS
from moe2.coordinator.training.collect.questions import Metric, Question, read_questions
from moe2.coordinator.training.gain import gain_of

MOE2, AUTO = "moe2 (route)", "moe2 (auto)"
LIVE = (MOE2, AUTO)
"""The ways that are asked under every pair of budgets; the baselines choose among the experts' answers alone."""
BEST, CHEAPEST, FASTEST = "best single that fits", "cheapest that fits", "fastest that fits"
RANDOM, ROUND_ROBIN, VOTE = "random that fits", "round robin of those that fit", "vote of all"
SINGLES = (BEST, CHEAPEST, FASTEST, RANDOM, ROUND_ROBIN)
ROOM = 1.2
"""A budget over what the expert that it is made for is predicted to take at most."""
MAX_LEVELS = 3
"""Limits on one axis, "none" among them."""
MIN_VALIDATION = 16
MIN_LEARNING = 50
"""Training a gate needs 20 rows to learn from and 10 to validate on, and `tune` holds a fifth of both out in turn."""
NONE = "none"
ERRORS_OF_GAINS = tuple((f"{mode}_gain_points", f"{mode}_gain_se") for mode in ("route", "auto"))
"""Names of figures with those of their errors."""


@dataclass(frozen=True)
class Budget:
    """What one answer may take; None for no limit."""

    energy_j: float | None = None
    delay_s: float | None = None

    @property
    def key(self) -> str:
        """The budget as it is written into the file of answers and the tables."""
        parts = [f"{self.energy_j:g} J" if self.energy_j else "", f"{self.delay_s:g} s" if self.delay_s else ""]
        return ", ".join(part for part in parts if part) or NONE

    @property
    def wishes(self) -> dict[str, float]:
        """The fields of a request's `moe2` object."""
        limits = {"energy_budget_j": self.energy_j, "latency_budget_s": self.delay_s}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def is_broken(self, answer: Answer) -> bool:
        """Whether an answer took more; unknown joules are not said to be more."""
        joules, limit_j = answer.joules, self.energy_j
        is_dear = joules is not None and limit_j is not None and joules > limit_j
        return is_dear or (self.delay_s is not None and answer.seconds > self.delay_s)

    def holds(self, energy_j: float | None, delay_s: float) -> bool:
        """Whether these joules and seconds keep the budget; unknown joules keep no limit on joules."""
        fits_energy = self.energy_j is None or (energy_j is not None and energy_j <= self.energy_j)
        return fits_energy and (self.delay_s is None or delay_s <= self.delay_s)


class Cost(msgspec.Struct, frozen=True):
    """What the coordinator predicts that one answer of an expert takes at most (p95)."""

    energy_j: float | None
    delay_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file of answers. way: an expert's key, or one of `LIVE`. score: 0 where nothing was answered."""

    way: str
    budget: str
    question: str
    score: float
    joules: float | None
    seconds: float
    quality: str | None = None
    """How the joules were obtained, such as "simulated"."""
    said: str | None = None
    """The final answer in its normal form; None where it says nothing."""
    refused: str | None = None
    """The code of the error where nobody answered, such as no expert that keeps the budget."""


@dataclass(frozen=True)
class Parts:
    """Questions to learn from and to report on; no question is in both."""

    learning: tuple[Question, ...]
    held_out: tuple[Question, ...]


def questions_of(path: Path) -> tuple[Question, ...]:
    """The questions of a .tsv file (question, right answer, wrong ones), or of a question set as `collect` reads it.

    Raises Moe2Error.
    """
    if path.suffix != ".tsv":
        return read_questions(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Moe2Error(f"{path} is not UTF-8 text ({error}).") from error
    found = []
    for number, line in enumerate(lines, start=1):
        text, *choices = line.split("\t")
        if not 2 <= len(choices) <= len(LETTERS) or not all(part.strip() for part in (text, *choices)):
            raise Moe2Error(f"{path}, line {number}: not a question, the right answer and wrong ones between tabs.")
        order = Random(number).sample(choices, len(choices))
        options = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, order, strict=False)]
        found.append(
            Question(
                id=f"{path.stem}-{number:03}",
                asked="\n".join((text, *options)),
                gold=LETTERS[order.index(choices[0])],
                metric=Metric.CHOICE,
                choices=tuple(order),
                labels=(),
            )
        )
    return tuple(found)


def parted(questions: Sequence[Question], limit: int | None, seed: int = 0) -> Parts:
    """Hold out the rows of the split "test", or where there are none every other question of each kind.

    limit: most questions held out; twice as many, but not fewer than training needs, are learned from. Of the learning
    questions a fifth, at least 16, are for validation. Another seed deals and orders them otherwise. Raises Moe2Error
    where there are too few.
    """
    held_out = [question for question in questions if dict(question.labels).get("split") == "test"]
    if not held_out:
        kinds: dict[tuple[tuple[str, str], ...], list[Question]] = defaultdict(list)
        for question in _shuffled(questions, f"{seed or ''}"):
            kinds[tuple(label for label in question.labels if label[0] != "split")].append(question)
        dealt = [question for kind in kinds.values() for question in kind]
        held_out = dealt[1::2]
    out = {question.id for question in held_out}
    order = f"order {seed or ''}"
    learning = _shuffled([question for question in questions if question.id not in out], order)
    held_out = _shuffled(held_out, order)
    if limit is not None:
        held_out, learning = held_out[:limit], learning[: max(MIN_LEARNING, 2 * limit)]
    if len(learning) < MIN_LEARNING or not held_out:
        raise Moe2Error(
            f"{len(questions)} questions leave {len(learning)} to learn from; a gate needs {MIN_LEARNING}, beside some "
            "that are held out.",
            remedy="Give more questions.",
        )
    n_validation = max(MIN_VALIDATION, len(learning) // 5)
    splits = ["val"] * n_validation + ["train"] * (len(learning) - n_validation)
    return Parts(
        tuple(_relabelled(question, split) for question, split in zip(learning, splits, strict=True)),
        tuple(held_out),
    )


def _shuffled(questions: Sequence[Question], order: str) -> list[Question]:
    """In an order that is the same each time, another one for each name of an order, and knows nothing of the kinds."""
    return sorted(questions, key=lambda question: zlib.crc32(f"{order}{question.id}".encode("utf-8", "replace")))


def _relabelled(question: Question, split: str) -> Question:
    return replace(question, labels=(*(label for label in question.labels if label[0] != "split"), ("split", split)))


def question_row(question: Question) -> dict[str, Any]:
    """The question as a line of a question set."""
    row = {"id": question.id, "prompt": question.asked, "gold": question.gold, "metric": str(question.metric)}
    return {**row, **({"choices": list(question.choices)} if question.choices else {}), **dict(question.labels)}


def grid(costs: Mapping[str, Cost]) -> tuple[Budget, ...]:
    """Every pair of an energy and a delay limit. Each limit is a little over what one of the experts is predicted to
    take; what the dearest or slowest takes is no limit, and is given as none.
    """
    energies = _levels([cost.energy_j for cost in costs.values() if cost.energy_j is not None])
    delays = _levels([cost.delay_s for cost in costs.values()])
    return tuple(Budget(energy_j, delay_s) for energy_j in energies for delay_s in delays)


def _levels(costs: Sequence[float]) -> list[float | None]:
    kept = sorted(costs)[:-1]
    count = min(MAX_LEVELS - 1, len(kept))
    places = [round(place) for place in np.linspace(0, len(kept) - 1, count)] if count else []
    limits = sorted({float(f"{ROOM * kept[place]:.3g}") for place in places}, reverse=True)
    return [None, *limits]


def typical_costs(rows: Sequence[Mapping[str, Cost]]) -> dict[str, Cost]:
    """The median over questions of what each expert is predicted to take, in the order of their keys."""
    typical = {}
    for expert in sorted({key for row in rows for key in row}):
        costs = [row[expert] for row in rows if expert in row]
        joules = [cost.energy_j for cost in costs if cost.energy_j is not None]
        typical[expert] = Cost(median(joules) if joules else None, median(cost.delay_s for cost in costs))
    return typical


@dataclass(frozen=True)
class Study:
    """All that the baselines and the figures are made of."""

    questions: tuple[Question, ...]
    budgets: tuple[Budget, ...]
    costs: Mapping[str, Mapping[str, Cost]]
    """What is predicted of each expert, by question and by the expert's key."""
    learned_scores: Mapping[str, float]
    """Each expert's mean score on the learning questions, by key."""
    answers: Mapping[tuple[str, str, str], Answer]
    """By way, budget and question."""
    seed: int = 0
    """Of the random baseline."""

    def fitting(self, question: Question, budget: Budget) -> list[str]:
        """Keys of the experts that are predicted to keep the budget with this question, in the order of their keys."""
        costs = self.costs[question.id]
        return sorted(key for key, cost in costs.items() if budget.holds(cost.energy_j, cost.delay_s))

    def alone(self, expert: str, question: Question) -> Answer:
        """What the expert answered when it was asked alone and without a budget."""
        return self.answers[expert, NONE, question.id]

    def baselines(self, budget: Budget) -> dict[str, list[Answer | None]]:
        """Each baseline's answers to the questions, in their order; None where it has no expert that fits."""
        draw = Random(self.seed)
        found: dict[str, list[Answer | None]] = {name: [] for name in (*SINGLES, VOTE)}
        for place, question in enumerate(self.questions):
            fits = self.fitting(question, budget)
            for name in SINGLES:
                key = self._single(name, place, question, fits, draw) if fits else None
                found[name].append(None if key is None else self.alone(key, question))
            found[VOTE].append(self._voted(question) if self._all_fit(question, budget) else None)
        return found

    def _single(self, name: str, place: int, question: Question, fits: Sequence[str], draw: Random) -> str:
        """The expert that a baseline takes of those that fit, at least one; place: of the question."""
        costs = self.costs[question.id]
        if name == RANDOM:
            return draw.choice(fits)
        if name == ROUND_ROBIN:
            return fits[place % len(fits)]
        # Unknown joules come last.
        ranks: dict[str, Callable[[str], float]] = {
            BEST: lambda key: -self.learned_scores[key],
            CHEAPEST: lambda key: inf if (energy_j := costs[key].energy_j) is None else energy_j,
            FASTEST: lambda key: costs[key].delay_s,
        }
        return min(fits, key=ranks[name])

    def _all_fit(self, question: Question, budget: Budget) -> bool:
        """Whether all experts together, side by side, are predicted to keep the budget."""
        costs = self.costs[question.id].values()
        return budget.holds(_total([cost.energy_j for cost in costs]), max(cost.delay_s for cost in costs))

    def _voted(self, question: Question) -> Answer:
        """The answer that most experts give; of equally many that of the best on the learning questions."""
        ballots = [(key, self.alone(key, question)) for key in sorted(self.learned_scores)]
        counts: dict[str, int] = defaultdict(int)
        for _, answer in ballots:
            if answer.said is not None:
                counts[answer.said] += 1
        most = max(counts.values(), default=0)
        leaders = [ballot for ballot in ballots if ballot[1].said is not None and counts[ballot[1].said] == most]
        winner = max(leaders or ballots, key=lambda ballot: self.learned_scores[ballot[0]])[1]
        return msgspec.structs.replace(
            winner,
            way=VOTE,
            joules=_total([answer.joules for _, answer in ballots]),
            seconds=max(answer.seconds for _, answer in ballots),
        )

    def figures(self, budget: Budget) -> dict[str, dict[str, float | None]]:
        """The figures of every way under a budget; gains are those of moe2, paired by question."""
        ways: dict[str, list[Answer | None]] = {
            way: [_kept(self.answers[way, budget.key, question.id]) for question in self.questions] for way in LIVE
        }
        ways.update(self.baselines(budget))
        return {name: _figures(answers, ways, budget) for name, answers in ways.items()}


def over_seeds(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The mean figures of several runs' grids, pair of budgets by pair; errors are what the runs differ by, but not
    less than their own errors give: two runs may be equal by chance.

    Limits follow from what each run's fleet predicts, so that pairs are matched by their place in the grid, and the
    limits given are the means too. Figures that one of the runs lacks are None. Raises Moe2Error where grids differ.
    """
    grids = {tuple((cell["energy_budget_j"] is None, cell["latency_budget_s"] is None) for cell in run) for run in runs}
    if len(grids) > 1:
        raise Moe2Error("The runs' grids of budgets do not match, so that no means are formed.")
    found = []
    for cells in zip(*runs, strict=True):
        ways: dict[str, dict[str, float | None]] = {}
        for way, first in cells[0]["ways"].items():
            rows = [cell["ways"][way] for cell in cells]
            means = {name: _mean([row[name] for row in rows]) for name in first}
            for figure, error in (("score", "score_se"), *ERRORS_OF_GAINS):
                own = [row[error] or 0.0 for row in rows]
                apart = float(np.std([row[figure] for row in rows], ddof=1) / np.sqrt(len(rows)))
                means[error] = round(max(apart, float(np.linalg.norm(own)) / len(rows)), 4)
            ways[way] = means
        limits = {name: _mean([cell[name] for cell in cells]) for name in ("energy_budget_j", "latency_budget_s")}
        found.append({**limits, "ways": ways})
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(mean(known), 4) if len(known) == len(values) else None


def _total(values: Sequence[float | None]) -> float | None:
    """The sum, which is unknown where one of the values is."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _kept(answer: Answer) -> Answer | None:
    return answer if answer.refused is None else None


def _figures(
    answers: Sequence[Answer | None], ways: Mapping[str, Sequence[Answer | None]], budget: Budget
) -> dict[str, float | None]:
    """Score (unanswered questions count 0) with its error, the gains of moe2 over it in points, what answers took."""
    scores = _scores(answers)
    given = [answer for answer in answers if answer is not None]
    joules = [answer.joules for answer in given if answer.joules is not None]
    route, auto = (gain_of(_scores(ways[way]), scores) for way in LIVE)
    error = float(scores.std(ddof=1) / np.sqrt(scores.size)) if scores.size > 1 else None
    return {
        "score": round(float(scores.mean()), 4),
        "score_se": None if error is None else round(error, 4),
        "route_gain_points": round(100 * route.gain, 2),
        "route_gain_se": _points(route.standard_error),
        "auto_gain_points": round(100 * auto.gain, 2),
        "auto_gain_se": _points(auto.standard_error),
        "answered": round(len(given) / len(answers), 4),
        "mean_j": round(mean(joules), 3) if joules else None,
        "unmeasured": len(given) - len(joules),
        "mean_s": round(mean(answer.seconds for answer in given), 3) if given else None,
        "over_budget": round(mean(budget.is_broken(one) for one in given), 4) if given else None,
    }


def _points(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _scores(answers: Sequence[Answer | None]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([0.0 if answer is None else answer.score for answer in answers], dtype=np.float64)
