"""Tests of the evaluation of votes over final answers."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from moe2.coordinator.cli import evaluate as command
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.evaluate.consensus import VoteEvaluationError, default_pools, evaluate_votes
from moe2.coordinator.training.evaluate.report import BehindBest, EarlyStop, PolicyFigures, VoteReport
from moe2.coordinator.training.outcomes import Outcomes, read_outcomes
from tests.coordinator.training.outcome_tables import synthetic_outcomes

pytestmark = pytest.mark.slow

NAMES = ("small-3b", "second-3b", "third-3b", "large-70b")
QUICK = TrainingConfig(seeds=(0,), epochs=2)


def answered(rows: int = 600, seed: int = 3) -> Outcomes:
    """Three small experts that are right independently of each other, and a large one that is right more often."""
    random = np.random.default_rng(seed)
    plain = synthetic_outcomes(rows=rows, experts=4, seed=seed)
    scores = (random.random((rows, 4)) < np.array([0.6, 0.6, 0.6, 0.9])).astype(float)
    wrong = random.integers(0, 6, (rows, 4))
    answers = tuple(
        tuple("right" if scores[row, n] else f"wrong {wrong[row, n]}" for n in range(4)) for row in range(rows)
    )
    return replace(plain, experts=NAMES, scores=scores, answers=answers)


@pytest.fixture(scope="module")
def report() -> VoteReport:
    """The figures of a pool of three small experts, and of the same with the large one."""
    pools = {"small": NAMES[:3], "with the large one": NAMES}
    return evaluate_votes(answered(), pools=pools, targets_j=(60.0, None), training=QUICK)


def call(*argv: str) -> int:
    """The exit code of the command."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


def found(report: VoteReport, pool: str, target_j: float | None, policy: str) -> PolicyFigures:
    """One line of the report."""
    [line] = [line for line in report.consensus if (line.pool, line.target_j, line.policy) == (pool, target_j, policy)]
    return line


def test_a_vote_of_independent_experts_beats_the_best_alone(report: VoteReport) -> None:
    """Three that are right in 60 % agree on the right answer more often than one alone."""
    vote = found(report, "small", None, "consensus_all")
    assert vote.gain_points > 2 * vote.gain_se > 0
    assert vote.asked_mean == 3.0


def test_asking_in_turn_changes_no_outcome_and_saves_joules(report: VoteReport) -> None:
    """Only members that cannot change the outcome are left out."""
    [stop] = [stop for stop in report.early_stop if stop.pool == "small"]
    assert (stop.lost_points, stop.lost_se) == (0.0, 0.0)
    assert stop.joules_ratio < 0.95
    early, everybody = (found(report, "small", None, policy) for policy in ("consensus_early_stop", "consensus_all"))
    assert early.score == everybody.score
    assert early.mean_j < everybody.mean_j


def test_auto_is_also_told_the_label(report: VoteReport) -> None:
    """As where a client names the category: what is known beforehand is the same as for the best expert per label."""
    told = [line for line in report.behind_best if line.policy == "auto_label_known"]
    untold = [line for line in report.behind_best if line.policy == "auto"]
    assert [(line.pool, line.target_j, line.best_policy) for line in told] == [
        (line.pool, line.target_j, line.best_policy) for line in untold
    ]
    for line in told:
        assert line.behind_points <= max(2 * line.behind_se, 2.0), line


def test_auto_keeps_up_with_the_best_policy(report: VoteReport) -> None:
    """It takes the vote where that is best, and sees that asking the large expert once is better."""
    for line in report.behind_best:
        assert line.behind_points <= max(2 * line.behind_se, 2.0), line
    assert found(report, "with the large one", None, "auto").score > 0.8


def test_targets_are_kept(report: VoteReport) -> None:
    """No policy takes more joules than its target, as far as lengths can be foreseen."""
    for line in report.consensus:
        assert line.target_j is None or line.mean_j <= 1.02 * line.target_j


def test_default_pools_are_the_small_ones_and_all() -> None:
    """The best four small experts, all small ones, and both with the larger ones; equal pools once."""
    assert list(default_pools(answered()).values()) == [NAMES[:3], NAMES]


def test_figures_of_all_fifths_are_those_of_all_rows() -> None:
    """Each train row is answered once by what the others say; paired errors are smaller than those of one fifth."""
    table = answered(rows=300)
    table = table.take(np.concatenate([table.rows_of("train"), table.rows_of("val")]))
    pools = {"small": NAMES[:3]}
    whole = evaluate_votes(table, pools=pools, targets_j=(None,), training=QUICK, fifths=range(5))
    parts = [
        evaluate_votes(table, pools=pools, targets_j=(None,), training=QUICK, fifths=(fifth,)) for fifth in range(5)
    ]
    assert whole.rows["reported"] == len(table.rows_of("train")) == sum(part.rows["reported"] for part in parts)
    for policy in ("best_single", "auto", "consensus_all"):
        lines = [found(part, "small", None, policy) for part in parts]
        right = sum(line.score * part.rows["reported"] for line, part in zip(lines, parts, strict=True))
        together = found(whole, "small", None, policy)
        assert together.score == pytest.approx(right / whole.rows["reported"])
        assert together.score_se < min(line.score_se for line in lines)


def test_outcomes_without_answers_are_refused() -> None:
    """Scores alone say nothing of votes."""
    with pytest.raises(VoteEvaluationError, match="no answers"):
        evaluate_votes(synthetic_outcomes(), training=QUICK)


def silenced(table: Outcomes, *silent: int) -> Outcomes:
    """The table without the answers of some experts, whose scores it keeps."""
    assert table.answers is not None
    answers = tuple(tuple(None if n in silent else answer for n, answer in enumerate(row)) for row in table.answers)
    return replace(table, answers=answers)


def test_answers_of_one_model_are_no_vote() -> None:
    """Its figures would be those of one expert, and those of all others would count as wrong."""
    with pytest.raises(VoteEvaluationError, match="answers of second-3b only"):
        evaluate_votes(silenced(answered(), 0, 2, 3), training=QUICK)


def test_who_has_no_answers_is_in_no_pool() -> None:
    """It is named as left out, and a pool that names it is refused; its right answers do not count as wrong ones."""
    table = silenced(answered(), 3)
    report = evaluate_votes(table, targets_j=(None,), training=QUICK)
    assert (list(report.pools.values()), report.left_out) == ([NAMES[:3]], (NAMES[3],))
    with pytest.raises(VoteEvaluationError, match="no answers of large-70b, of the pool 'mine'"):
        evaluate_votes(table, pools={"mine": NAMES}, training=QUICK)


def test_who_was_not_asked_is_not_wrong() -> None:
    """A pool is judged on the rows that all its experts were asked, and refused where they are few."""
    table, pools = answered(), {"mine": NAMES[:2]}
    whole = evaluate_votes(table, pools=pools, targets_j=(None,), training=QUICK)
    scores = table.scores.copy()
    scores[::2, 0] = np.nan
    half = evaluate_votes(replace(table, scores=scores), pools=pools, targets_j=(None,), training=QUICK)
    assert 0 < half.rows["reported"] < 0.7 * whole.rows["reported"]
    assert found(half, "mine", None, "best_single").score == pytest.approx(0.6, abs=0.15)
    scores[: len(table) - 4, 0] = np.nan
    with pytest.raises(VoteEvaluationError, match="the answers of all of small-3b, second-3b"):
        evaluate_votes(replace(table, scores=scores), pools=pools, targets_j=(None,), training=QUICK)


def test_what_is_not_one_number_is_not_told_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Where joules have no limit, the sentence on a policy that is behind says so; voters are not counted where each
    fifth has its own."""
    behind = [
        BehindBest(pool="p", target_j=target, policy="auto", best_policy="b", behind_points=2.0, behind_se=1.0)
        for target in (250.0, None)
    ]
    told = VoteReport(
        pools={},
        rows={"reported": 9},
        reported_on="x",
        host_marks="",
        consensus=(),
        early_stop=tuple(
            EarlyStop(pool=pool, members=members, lost_points=0.1, lost_se=0.2, joules_ratio=0.8)
            for pool, members in (("p", ("a", "b", "c")), ("q", ()))
        ),
        behind_best=(*behind,),
    )
    command._show_votes(told, Console(width=200))
    out = capsys.readouterr().out
    assert "in pool 'p' within 250 J by 2.00 ± 1.00 points" in out
    assert "in pool 'p' without a limit by 2.00 ± 1.00 points" in out
    assert "p: asking the 3 voters in turn" in out
    assert "q: asking the voters in turn" in out


def test_the_command_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate --answers FILE --json FILE` has the block `consensus`; a file without answers is an error."""
    table = answered(rows=200)
    lines = []
    for row in range(len(table)):
        answers = table.answers[row] if table.answers else ()
        lines.append(
            {
                "id": table.ids[row],
                "prompt": table.prompts[row],
                "split": table.splits[row],
                "benchmark": table.tasks[row],
                "scores": dict(zip(NAMES, table.scores[row].tolist(), strict=True)),
                "answers": dict(zip(NAMES, answers, strict=True)),
                "chars": dict.fromkeys(NAMES, 40.0),
            }
        )
    path, out = tmp_path / "answers.jsonl", tmp_path / "out.json"
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))
    assert read_outcomes(path).with_experts(NAMES).answers == table.answers
    pool = f"mine={','.join(NAMES[:2])}"
    assert call("--answers", str(path), "--pool", pool, "--json", str(out)) == 0
    block = msgspec.json.decode(out.read_bytes())["consensus"]
    wanted = {"pool", "target_j", "policy", "score", "mean_j", "asked_mean", "gain_points", "gain_se"}
    assert wanted <= set(block[0])
    assert {line["policy"] for line in block} >= {"best_single", "label_known", "priced_route", "auto"}
    assert "mine" in capsys.readouterr().out
    assert call() == 1
    assert call("--answers", str(path), "--pool", "nothing") == 1
    assert call("--answers", str(path), "--fifth", "every") == 1
    assert call("--outcomes", str(path), "--fifth", "all") == 1
