"""The command `moe2-coordinator train-gate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from moe2.coordinator.cli.train import add_arguments, run
from moe2.coordinator.gate.checkpoint import load_checkpoint
from tests.coordinator.training.outcome_tables import synthetic_outcomes


def write_outcomes(path: Path, sources: tuple[str, ...] = ("one",)) -> Path:
    table = synthetic_outcomes(150)
    with path.open("w") as file:
        for source in sources:
            for row in range(len(table)):
                scores = {name: float(table.scores[row, n]) for n, name in enumerate(table.experts)}
                line = {
                    "id": f"{source}-{row}",
                    "prompt": table.prompts[row],
                    "split": table.splits[row],
                    "source": source,
                }
                file.write(json.dumps({**line, "benchmark": table.tasks[row], "scores": scores}) + "\n")
    return path


def call(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(argv))


@pytest.mark.slow
def test_a_checkpoint_and_its_figures_are_written(tmp_path: Path) -> None:
    """The command trains, writes the checkpoint and writes the manifest as JSON."""
    data, out, figures = write_outcomes(tmp_path / "o.jsonl"), tmp_path / "g.safetensors", tmp_path / "m.json"
    assert (
        call("--outcomes", str(data), "--out", str(out), "--seeds", "1", "--epochs", "1", "--json", str(figures)) == 0
    )
    gate, manifest = load_checkpoint(out)
    assert gate.experts == ("expert-0", "expert-1", "expert-2")
    assert json.loads(figures.read_text())["metrics"] == manifest.metrics
    assert np.isfinite(gate.predict("who").probabilities).all()


@pytest.mark.parametrize(
    ("sources", "argv", "told"),
    [
        (("one", "two"), (), "several sources"),
        (("one",), ("--source", "three"), "no rows of source"),
        (("one",), ("--experts", "expert-0,nobody"), "no scores of nobody"),
        (("one",), ("--experts", "expert-0"), "two experts"),
        (("one",), ("--seeds", "0"), "at least 1"),
    ],
)
def test_bad_choices_end_with_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sources: tuple[str, ...], argv: tuple[str, ...], told: str
) -> None:
    """A choice that cannot be met ends with exit code 1 and the reason; no checkpoint appears."""
    data, out = write_outcomes(tmp_path / "o.jsonl", sources), tmp_path / "g.safetensors"
    assert call("--outcomes", str(data), "--out", str(out), *argv) == 1
    assert told in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_one_source_and_some_experts_can_be_chosen(tmp_path: Path) -> None:
    """The gate learns the chosen experts from the chosen source; other sources help as auxiliary rows."""
    data, out = write_outcomes(tmp_path / "o.jsonl", ("one", "two")), tmp_path / "g.safetensors"
    argv = ("--outcomes", str(data), "--out", str(out), "--source", "two", "--experts", "expert-2,expert-0")
    assert call(*argv, "--seeds", "1", "--epochs", "1") == 0
    _, manifest = load_checkpoint(out)
    assert manifest.experts == ("expert-2", "expert-0")
    assert manifest.source == "two"
    assert manifest.rows["auxiliary"] > 0


def test_errors_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets in an error message are shown as they are, not taken for markup."""
    assert call("--outcomes", str(tmp_path / "o[bold].jsonl")) == 1
    assert "o[bold].jsonl" in capsys.readouterr().err


@pytest.mark.slow
def test_a_gate_that_is_clearly_behind_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the validation rows contradict the train rows the gate is refused, unless it is asked for all the same."""
    data, out = write_outcomes(tmp_path / "o.jsonl"), tmp_path / "g.safetensors"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        # One expert is the best on train rows of each kind, and the others are on validation rows.
        best = ("maths", "code", "trivia").index(row["benchmark"])
        is_train = row["split"] == "train"
        row["scores"] = {name: float((n == best) == is_train) for n, name in enumerate(sorted(row["scores"]))}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ("--outcomes", str(data), "--out", str(out), "--seeds", "1", "--epochs", "50")
    assert call(*argv) == 1
    told = capsys.readouterr()
    assert "clearly behind the best single expert" in told.err
    assert "± " in told.out
    assert not out.exists()
    assert call(*argv, "--even-if-behind") == 0
    assert out.exists()
