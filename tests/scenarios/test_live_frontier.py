"""Tests of `benchmarks.live_frontier`: questions, grid, baselines and figures, and a whole run with real models."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.live_frontier import QUESTIONS, Kept, Setting, behind, model_argument, models_of, unbeaten
from benchmarks.live_frontier_fleet import ways_of
from benchmarks.live_frontier_study import (
    AUTO,
    BEST,
    CHEAPEST,
    FASTEST,
    LIVE,
    MOE2,
    NONE,
    RANDOM,
    ROUND_ROBIN,
    SINGLES,
    VOTE,
    Answer,
    Budget,
    Cost,
    Study,
    grid,
    over_seeds,
    parted,
    question_row,
    questions_of,
    typical_costs,
)
from moe2.common.errors import Moe2Error
from moe2.coordinator.training.collect.questions import Metric, Question, read_questions
from tests.models import smollm2_path

COSTS = {"a/cheap": Cost(10.0, 4.0), "b/middle": Cost(30.0, 2.0), "c/dear": Cost(90.0, 1.0)}
LEARNED = {"a/cheap": 0.2, "b/middle": 0.6, "c/dear": 0.4}


def numbers(count: int, *, split: str | None = None, kind: str = "sum", first: int = 0) -> list[Question]:
    """Questions for a number, of one kind."""
    labels = (("benchmark", kind), *((("split", split),) if split else ()))
    return [
        Question(f"{kind}-{number}", f"{kind} {number}?", "7", Metric.NUMERIC, (), labels)
        for number in range(first, first + count)
    ]


def answer(way: str, budget: str, question: str, said: str | None, *, refused: str | None = None) -> Answer:
    """An answer, right where it says 7, that takes what is predicted of its expert."""
    cost = COSTS.get(way, Cost(20.0, 3.0))
    return Answer(
        way=way,
        budget=budget,
        question=question,
        score=float(said == "7"),
        joules=cost.energy_j,
        seconds=cost.delay_s,
        said=said,
        refused=refused,
    )


def study(said: dict[str, str | None], live: dict[str, str | None] | None = None, questions: int = 3) -> Study:
    """Experts that say the same to each question; live: what moe2 says under each budget, "7" where it is not given."""
    asked = numbers(questions)
    given = [answer(key, NONE, question.id, text) for key, text in said.items() for question in asked]
    for budget in grid(COSTS):
        for way in LIVE:
            text = (live or {}).get(way, "7")
            given += [answer(way, budget.key, question.id, text) for question in asked]
    return Study(
        tuple(asked),
        grid(COSTS),
        {question.id: COSTS for question in asked},
        LEARNED,
        {(one.way, one.budget, one.question): one for one in given},
    )


def test_the_tsv_keeps_its_right_answers() -> None:
    """Options are shuffled, and the letter that is right stands before the file's right answer."""
    rows = [line.split("\t") for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    found = questions_of(QUESTIONS)
    assert [f"({one.gold}) {row[1]}" in one.asked for one, row in zip(found, rows, strict=True)] == [True] * len(rows)
    assert len({one.gold for one in found}) == 4


@pytest.mark.parametrize("line", ["only a question", "question\tright", "question\t\twrong", "\tright\twrong", ""])
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    """A question needs a right answer and at least one wrong one, none of them empty."""
    file = tmp_path / "odd.tsv"
    file.write_text(f"fine?\tyes\tno\n{line}\n", encoding="utf-8")
    with pytest.raises(Moe2Error, match="line 2"):
        questions_of(file)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    """The error names the file."""
    file = tmp_path / "odd.tsv"
    file.write_bytes(b"what?\tyes\xff\tno\n")
    with pytest.raises(Moe2Error, match=r"odd\.tsv is not UTF-8"):
        questions_of(file)


def test_no_question_is_learned_from_and_reported_on() -> None:
    """Half of each kind is held out, and the parts are the same each time."""
    questions = [*numbers(60, kind="sum"), *numbers(60, kind="word")]
    parts = parted(questions, None)
    assert {one.id for one in parts.learning} & {one.id for one in parts.held_out} == set()
    assert len(parts.learning) == len(parts.held_out) == 60
    assert sum(one.id.startswith("sum") for one in parts.held_out) == 30
    assert parted(list(reversed(questions)), None) == parts


def test_another_seed_holds_out_other_questions() -> None:
    """Each seed deals the same way every time, in the same shares of kinds, and no seed is the seed 0."""
    questions = [*numbers(60, kind="sum"), *numbers(60, kind="word")]
    first, second = (parted(questions, None, seed) for seed in (1, 2))
    held = [{one.id for one in parts.held_out} for parts in (parted(questions, None), first, second)]
    assert len({frozenset(ids) for ids in held}) == 3
    assert [sum(name.startswith("sum") for name in ids) for ids in held] == [30] * 3
    assert parted(list(reversed(questions)), None, 2) == second
    assert parted(questions, None, 0) == parted(questions, None)


def test_figures_over_seeds_are_means_with_the_seeds_errors() -> None:
    """Scores of 0 and 1 make 0.5 ± 0.5; what one seed does not know is unknown; other grids are refused."""
    runs: list[list[dict[str, Any]]] = []
    for text in ("7", "8"):
        of = study(dict.fromkeys(COSTS, text), {MOE2: "8", AUTO: "8"})
        runs.append([{"energy_budget_j": 10.0, "latency_budget_s": None, "ways": of.figures(Budget())}])
    runs[1][0]["energy_budget_j"] = 20.0
    runs[1][0]["ways"][BEST]["mean_j"] = None
    [cell] = over_seeds(runs)
    assert (cell["energy_budget_j"], cell["latency_budget_s"]) == (15.0, None)
    best = cell["ways"][BEST]
    assert (best["score"], best["score_se"], best["mean_j"]) == (0.5, 0.5, None)
    assert (best["route_gain_points"], best["route_gain_se"]) == (-50.0, 50.0)
    runs[1][0]["energy_budget_j"] = None
    with pytest.raises(Moe2Error, match="do not match"):
        over_seeds(runs)
    with pytest.raises(Moe2Error, match="do not match"):
        over_seeds([runs[0], []])


def test_rows_of_the_split_test_are_those_held_out() -> None:
    """A question set that says what is for reporting is taken at its word."""
    parts = parted([*numbers(60, split="train"), *numbers(5, split="test", first=60)], None)
    assert sorted(one.id for one in parts.held_out) == [f"sum-{number}" for number in range(60, 65)]


def test_a_limit_leaves_enough_to_train_a_gate() -> None:
    """Also with a fifth of the learning rows held out in turn, 20 to learn from and 10 to validate on are left."""
    parts = parted(numbers(120), 2)
    assert len(parts.held_out) == 2
    splits = [dict(one.labels)["split"] for one in parts.learning]
    assert 0.8 * splits.count("val") - 1 >= 10
    assert 0.8 * splits.count("train") - 1 >= 20


def test_too_few_questions_are_refused() -> None:
    """The error says how many there are, and none is no exception."""
    for count in (0, 1, 60):
        with pytest.raises(Moe2Error, match=f"^{count} questions leave"):
            parted(numbers(count), None)


def test_learning_questions_are_a_question_set(tmp_path: Path) -> None:
    """What is written for `tune` is read back as the same questions."""
    parts = parted(questions_of(QUESTIONS), None)
    file = tmp_path / "learning.jsonl"
    file.write_bytes(msgspec.json.Encoder().encode_lines([question_row(one) for one in parts.learning]))
    assert read_questions(file) == parts.learning


def test_the_grid_crosses_limits_that_leave_somebody_out() -> None:
    """Of three experts two make a limit on each axis, and no limit stands beside them."""
    assert [budget.key for budget in grid(COSTS)] == [
        *("none", "2.4 s", "1.2 s", "36 J", "36 J, 2.4 s", "36 J, 1.2 s", "12 J", "12 J, 2.4 s", "12 J, 1.2 s")
    ]


@pytest.mark.parametrize(
    ("costs", "count"),
    [
        ({"a/x": Cost(None, 1.0), "b/y": Cost(None, 2.0)}, 2),
        ({"a/x": Cost(1.0, 1.0)}, 1),
        ({"a/x": Cost(5.0, 1.0), "b/y": Cost(5.0, 1.0)}, 4),
        ({f"a/{n}": Cost(float(n + 1), float(n + 1)) for n in range(50)}, 9),
    ],
)
def test_the_grid_stays_small(costs: dict[str, Cost], count: int) -> None:
    """Unmeasured joules make no limit, and many experts make no more than three levels on an axis."""
    assert len(grid(costs)) == count


def test_unknown_joules_keep_no_energy_budget() -> None:
    """They do keep a delay budget."""
    assert not Budget(energy_j=1.0).holds(None, 0.0)
    assert Budget(delay_s=1.0).holds(None, 1.0)


def test_joules_that_nobody_measured_break_no_budget() -> None:
    """They are counted as unmeasured instead; seconds count all the same."""
    unknown = msgspec.structs.replace(answer("a/cheap", NONE, "q", "7"), joules=None)
    assert not Budget(energy_j=1.0).is_broken(unknown)
    assert Budget(delay_s=1.0).is_broken(unknown)
    assert Budget(energy_j=9.0).is_broken(answer("a/cheap", NONE, "q", "7"))


def test_typical_costs_are_medians_of_what_is_known() -> None:
    """An expert that one question knows nothing of counts with the others."""
    rows = [{"a/x": Cost(1.0, 1.0)}, {"a/x": Cost(3.0, 5.0), "b/y": Cost(None, 2.0)}]
    assert typical_costs(rows) == {"a/x": Cost(2.0, 3.0), "b/y": Cost(None, 2.0)}


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (Budget(), {BEST: "b/middle", CHEAPEST: "a/cheap", FASTEST: "c/dear"}),
        (Budget(energy_j=36.0), {BEST: "b/middle", CHEAPEST: "a/cheap", FASTEST: "b/middle"}),
        (Budget(delay_s=1.2), {BEST: "c/dear", CHEAPEST: "c/dear", FASTEST: "c/dear"}),
    ],
)
def test_baselines_choose_among_those_that_fit(budget: Budget, chosen: dict[str, str]) -> None:
    """The best is that of the learning questions."""
    found = study(dict.fromkeys(COSTS, "7")).baselines(budget)
    assert {name: {one.way for one in found[name] if one} for name in chosen} == {
        name: {way} for name, way in chosen.items()
    }


def test_chance_and_turns_stay_within_the_budget() -> None:
    """Round robin takes those that fit one after the other."""
    found = study(dict.fromkeys(COSTS, "7"), questions=40).baselines(Budget(energy_j=36.0))
    assert {one.way for one in found[RANDOM] if one} == {"a/cheap", "b/middle"}
    assert [one.way for one in found[ROUND_ROBIN][:4] if one] == ["a/cheap", "b/middle"] * 2


def test_nothing_fits_counts_as_wrong() -> None:
    """No baseline answers then, and what it took is unknown."""
    of = study(dict.fromkeys(COSTS, "7"))
    found = of.baselines(Budget(energy_j=1.0))
    assert {name: answers for name, answers in found.items() if answers != [None] * 3} == {}
    row = of.figures(Budget(energy_j=12.0, delay_s=1.2))[BEST]
    assert (row["score"], row["answered"], row["mean_j"], row["over_budget"]) == (0.0, 0.0, None, None)


def test_the_vote_goes_to_the_answer_that_most_give() -> None:
    """It takes the joules of all and the seconds of the slowest, and needs room for both."""
    of = study({"a/cheap": "7", "b/middle": "8", "c/dear": "7"})
    vote = of.baselines(Budget())[VOTE][0]
    assert vote is not None
    assert (vote.score, vote.joules, vote.seconds) == (1.0, 130.0, 4.0)
    assert of.baselines(Budget(energy_j=129.0))[VOTE] == [None] * 3
    assert of.baselines(Budget(energy_j=130.0))[VOTE][0] is not None


@pytest.mark.parametrize(
    ("said", "winner"),
    [
        ({"a/cheap": "7", "b/middle": "8", "c/dear": "9"}, "8"),
        ({"a/cheap": "7", "b/middle": None, "c/dear": "9"}, "9"),
        (dict.fromkeys(COSTS), None),
    ],
)
def test_a_tie_goes_to_the_best_on_the_learning_questions(said: dict[str, str | None], winner: str | None) -> None:
    """Who says nothing has no vote."""
    vote = study(said).baselines(Budget())[VOTE][0]
    assert vote is not None
    assert vote.said == winner


def test_gains_are_paired_with_both_ways_of_moe2() -> None:
    """A way that is right where the other is wrong gains all points; a way gains nothing over itself."""
    row = study(dict.fromkeys(COSTS, "8"), {MOE2: "8", AUTO: "7"}).figures(Budget())
    assert (row[MOE2]["route_gain_points"], row[MOE2]["auto_gain_points"]) == (0.0, 100.0)
    assert (row[BEST]["route_gain_points"], row[BEST]["auto_gain_points"]) == (0.0, 100.0)
    assert set(row) == {*LIVE, *SINGLES, VOTE}


def test_a_baseline_that_is_ahead_is_told() -> None:
    """By more than one standard error, and in the mode that it is ahead of."""
    of = study(dict.fromkeys(COSTS, "7"), {MOE2: "8", AUTO: "7"})
    cells = [{"energy_budget_j": None, "latency_budget_s": None, "ways": of.figures(Budget())}]
    assert {row["way"] for row in behind(cells, "route")} == {*SINGLES, VOTE}
    assert behind(cells, "auto") == []


def test_a_line_joins_what_no_cheaper_point_beats() -> None:
    """Points that cost more and score no more are left out of the line, and the cheapest one begins it."""
    assert unbeaten([(1.0, 0.2), (2.0, 0.1), (3.0, 0.4), (4.0, 0.4), (5.0, 0.5)]) == [
        (1.0, 0.2),
        (3.0, 0.4),
        (5.0, 0.5),
    ]
    assert unbeaten([]) == []


def test_equal_options_are_no_choices() -> None:
    """`auto` gets choices where they can be told apart, and no others."""
    options = ("yes", "no", "yes")
    twice = Question("q", "?", "A", Metric.CHOICE, options, ())
    once = Question("q", "?", "A", Metric.CHOICE, options[:2], ())
    assert ways_of(twice, AUTO) == ways_of(numbers(1)[0], AUTO) == {"mode": "auto"}
    assert ways_of(once, AUTO) == {"mode": "auto", "choices": ["yes", "no"]}
    assert ways_of(once, MOE2) == {"mode": "route"}


def test_answers_are_kept_and_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    """A folder goes on with the setting that it was begun with, and with no other."""
    setting = Setting((("a", "0", "rtx-4090"),), "questions", 24)
    kept = Kept(tmp_path, setting)
    for number in range(2):
        kept.put(answer("a/cheap", NONE, f"q{number}", "7"))
    kept.put_prediction("q0", COSTS)
    kept.put_budgets(grid(COSTS))
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    again = Kept(tmp_path, setting)
    assert list(again.answers) == [("a/cheap", NONE, "q0")]
    assert (again.predictions, again.budgets()) == ({"q0": COSTS}, grid(COSTS))
    again.put(answer("a/cheap", NONE, "q1", "7"))
    assert len(Kept(tmp_path, setting).answers) == 2
    with pytest.raises(Moe2Error, match="other models or questions"):
        Kept(tmp_path, Setting(setting.models, "others", 24))


def test_a_model_names_its_file_and_maybe_its_host(tmp_path: Path) -> None:
    """A file's name may hold an @ itself; hosts go round where nobody names one."""
    plain, odd = tmp_path / "m.gguf", tmp_path / "m@home.gguf"
    for file in (plain, odd):
        file.touch()
    assert model_argument(f"a={plain}@agx-orin-30w") == ("a", plain, "agx-orin-30w")
    assert model_argument(f"b={odd}") == ("b", odd, None)
    models = models_of([model_argument(f"b={odd}"), model_argument(f"a={plain}@rtx-4090")])
    assert [(one.name, one.profile) for one in models] == [("b", "rtx-4090"), ("a", "rtx-4090")]


@pytest.mark.parametrize("text", ["", "a", "=x", "a=", "a=/no/such.gguf", "a=/no/such.gguf@rtx-4090"])
def test_a_model_without_a_file_is_refused(text: str) -> None:
    """The error shows the form that is wanted."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"NAME=FILE\.gguf"):
        model_argument(text)


def test_a_fleet_has_two_models_of_different_names() -> None:
    """With one there is nothing to choose, and two of one name cannot be told apart."""
    for names in (("a",), ("a", "a")):
        with pytest.raises(Moe2Error, match="at least two models"):
            models_of([(name, Path("m.gguf"), None) for name in names])


@pytest.mark.slow
def test_a_short_run_with_real_models_goes_on_where_it_was(tmp_path: Path) -> None:
    """The second run asks nothing again and has the same figures."""
    smollm2_path()
    command = [sys.executable, "-m", "benchmarks.live_frontier", "--limit", "2", "--max-tokens", "4"]
    results = []
    for _ in range(2):
        done = subprocess.run([*command, "--folder", tmp_path], check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = results
    assert first["energy_quality"] == ["simulated"]
    assert first["asked_now"] == 2 * (2 + 2 * len(first["cells"]))
    assert second["asked_now"] == 0
    assert first["cells"] == second["cells"]
