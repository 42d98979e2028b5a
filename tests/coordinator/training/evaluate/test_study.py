"""The evaluation as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from moe2.coordinator.training.evaluate.plots import write_plots
from moe2.coordinator.training.evaluate.profiles import Budget, budget_grid, default_hosts, feasible_under, fleet_costs
from moe2.coordinator.training.evaluate.report import EvaluationReport
from moe2.coordinator.training.evaluate.study import (
    ALL_EXPERTS,
    MOE2,
    MOE2_TOLD,
    EvaluationError,
    evaluate,
    split_for_report,
)
from moe2.coordinator.training.evaluate.tables import tables
from tests.coordinator.training.evaluate.conftest import SMALL_FEATURES, SMALL_TRAINING
from tests.coordinator.training.outcome_tables import synthetic_outcomes

# It trains gates.
pytestmark = pytest.mark.slow

ROUTERS = {
    MOE2,
    MOE2_TOLD,
    ALL_EXPERTS,
    "best single that fits",
    "best per known label",
    "kNN router",
    "greedy (score per joule)",
    "cheapest",
    "fastest",
    "round robin",
    "random",
    "oracle",
}


def test_every_router_is_reported_under_every_budget(report: EvaluationReport) -> None:
    """All baselines appear on the whole grid: no limit, energy, delay and both."""
    assert all(set(budget.routers) == ROUTERS for budget in report.budgets)
    assert {budget.axis for budget in report.budgets} == {"none", "energy", "delay", "both"}


def test_moe2_beats_the_baselines_that_do_not_look_at_the_prompt(report: EvaluationReport) -> None:
    """Where the prompt's kind decides, the gate is far ahead of the best single expert, and below the oracle."""
    loose = report.budgets[0].routers
    assert loose[MOE2].score > loose["best single that fits"].score + 0.15
    assert loose[MOE2].score <= loose["oracle"].score


def test_average_budgets_and_days_are_reported(report: EvaluationReport) -> None:
    """Each target has its figures, in the report as in its JSON."""
    shown = json.loads(msgspec.json.encode(report))
    assert [row["target_j"] for row in shown["average"]] == [row["request_j"] for row in shown["day"]]
    named = {"target_j", "score", "mean_j", "se", "cap_score", "cap_mean_j", "gain_points", "gain_se"}
    for row in shown["average"]:
        assert named <= row.keys()
        assert row["mean_j"] == pytest.approx(row["target_j"], rel=0.01)


def test_no_router_beats_the_oracle(report: EvaluationReport) -> None:
    """Among single choices the oracle is an upper bound under every budget."""
    for budget in report.budgets:
        for name in ROUTERS - {ALL_EXPERTS}:
            assert budget.routers[name].score <= budget.routers["oracle"].score + 1e-9


def test_more_budget_never_answers_less(report: EvaluationReport) -> None:
    """Along a sweep the answered share only grows."""
    for axis in ("energy", "delay"):
        answered = [budget.routers[MOE2].answered for budget in report.budgets if budget.axis == axis]
        assert answered == sorted(answered)


def test_leads_are_paired_with_moe2(report: EvaluationReport) -> None:
    """A lead is the difference of the two scores; moe2's own is nothing."""
    for name, figures in report.budgets[0].routers.items():
        assert figures.lead == pytest.approx(figures.score - report.budgets[0].routers[MOE2].score)
        assert name != MOE2 or figures.lead_standard_error == 0


def test_told_the_category_moe2_knows_what_the_label_baseline_knows(report: EvaluationReport) -> None:
    """Its leads are paired like moe2's, and without limits the known label's best is not ahead of it."""
    loose = report.budgets[0]
    lead, error = loose.leads_over_told["best per known label"]
    assert lead == pytest.approx(loose.routers["best per known label"].score - loose.routers[MOE2_TOLD].score)
    assert lead <= error
    assert loose.leads_over_told[MOE2_TOLD] == (0.0, 0.0)
    assert not any("known label under energy None J, delay None s" in line for line in report.baselines_ahead_of_told)


def test_the_report_is_json(report: EvaluationReport) -> None:
    """Every figure survives JSON."""
    assert msgspec.json.decode(msgspec.json.encode(report), type=EvaluationReport) == report


def test_test_rows_are_reported_on_where_there_are_some() -> None:
    """Learning and reported rows share no row and no prompt."""
    pool = synthetic_outcomes()
    parts = split_for_report(pool)
    assert parts.reported_on == "test"
    assert set(parts.report.ids) == {pool.ids[row] for row in pool.rows_of("test")}
    assert not set(parts.learn.ids) & set(parts.report.ids)


def test_without_test_rows_a_named_part_of_train_is_held_out() -> None:
    """The held-out part comes from the train rows alone, and its name says so."""
    pool = synthetic_outcomes()
    pool = pool.take([row for row in range(len(pool)) if pool.splits[row] != "test"])
    parts = split_for_report(pool)
    assert "held-out" in parts.reported_on
    assert set(parts.report.splits) == {"train"}
    assert not set(parts.learn.ids) & set(parts.report.ids)
    assert set(parts.learn.splits) == {"train", "val"}


def test_five_fifths_hold_out_every_train_row_once() -> None:
    """Together they report on all train rows, none of them twice; there is no sixth, nor one beside test rows."""
    whole = synthetic_outcomes()
    pool = whole.take([row for row in range(len(whole)) if whole.splits[row] != "test"])
    held = [row_id for fifth in range(5) for row_id in split_for_report(pool, fifth).report.ids]
    assert sorted(held) == sorted(pool.ids[row] for row in pool.rows_of("train"))
    for fifth, rows in ((5, pool), (-1, pool), (1, whole)):
        with pytest.raises(EvaluationError):
            split_for_report(rows, fifth)


def test_prompts_that_are_reported_on_are_not_learnt_from() -> None:
    """A train row with the same prompt as a test row is dropped."""
    pool = synthetic_outcomes()
    row, test = int(pool.rows_of("train")[0]), int(pool.rows_of("test")[0])
    prompts = tuple(pool.prompts[test] if n == row else prompt for n, prompt in enumerate(pool.prompts))
    assert pool.ids[row] not in split_for_report(replace(pool, prompts=prompts)).learn.ids


def test_reported_scores_do_not_reach_the_gate(report: EvaluationReport) -> None:
    """With the reported rows' scores turned round, the gate's own figures stay the same."""
    pool = synthetic_outcomes()
    scores = pool.scores.copy()
    scores[pool.rows_of("test")] = 1 - scores[pool.rows_of("test")]
    other = evaluate(replace(pool, scores=scores), training=SMALL_TRAINING, features=SMALL_FEATURES)
    assert other.gate_metrics == report.gate_metrics
    assert other.budgets[0].routers[MOE2].score != report.budgets[0].routers[MOE2].score


def test_too_few_rows_are_refused() -> None:
    """A handful of rows gives an error instead of a figure."""
    with pytest.raises(EvaluationError, match="at least 10"):
        split_for_report(synthetic_outcomes(20))


def test_budgets_rule_out_what_costs_more() -> None:
    """Feasible is what fits both limits and was run."""
    table = synthetic_outcomes(20)
    costs = fleet_costs(table, table, default_hosts(table.experts), 64.0)
    runnable = np.ones((20, 3), dtype=bool)
    runnable[0, 0] = False
    assert feasible_under(Budget("none", None, None), costs, runnable).sum() == 59
    limit = float(np.median(costs.predicted_energy_j))
    fits = feasible_under(Budget("energy", limit, None), costs, runnable)
    assert (costs.predicted_energy_j[fits] <= limit).all()
    assert len(budget_grid(costs)) == 1 + 7 + 7 + 9


def test_plots_are_written_as_png_and_svg(report: EvaluationReport, tmp_path: Path) -> None:
    """Two pictures in two formats, the same bytes each time for SVG."""
    files = write_plots(report, tmp_path / "one")
    again = write_plots(report, tmp_path / "two")
    assert [file.name for file in files] == [f"score_by_{a}.{s}" for a in ("energy", "delay") for s in ("png", "svg")]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert files[1].read_bytes() == again[1].read_bytes()


def test_tables_name_every_router(report: EvaluationReport) -> None:
    """The first table has a row per router."""
    first = next(tables(report))
    assert first.row_count == len(ROUTERS)
    assert len(list(tables(report))) == 6


def test_the_command_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate` reads, trains, shows and writes JSON; the JSON holds what was shown."""
    import argparse

    from moe2.coordinator.cli.evaluate import add_arguments, run
    from tests.coordinator.cli.test_train import write_outcomes

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    data, figures = write_outcomes(tmp_path / "o.jsonl"), tmp_path / "figures.json"
    hosts = "expert-0=rtx-4090,expert-1=agx-orin-30w,expert-2=agx-orin-maxn"
    argv = ["--outcomes", str(data), "--seeds", "1", "--hosts", hosts, "--json", str(figures)]
    assert run(parser.parse_args(argv)) == 0
    assert json.loads(figures.read_text())["hosts"]["expert-0"] == "rtx-4090"
    assert "one expert per prompt" in capsys.readouterr().out
    assert run(parser.parse_args([*argv[:4], "--hosts", "expert-0:rtx"])) == 1
    assert "not EXPERT=HOST" in capsys.readouterr().err
