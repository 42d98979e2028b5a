"""Tests of the outcomes file that a collection writes and continues."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.training.collect.outfile import Answered, Outfile, OutfileError
from moe2.coordinator.training.collect.questions import Metric, Question
from moe2.coordinator.training.outcomes import read_outcomes
from tests.fakes.fulldisk import room_for_bytes


def question(name: str = "q1", asked: str = "How many?") -> Question:
    return Question(name, asked, "4", Metric.NUMERIC, (), (("benchmark", "sums"),))


def answered(model: str = "m", score: float = 1.0, file_sha256: str | None = None) -> Answered:
    return Answered(
        model=model,
        score=score,
        chars=3,
        tokens=2,
        seconds=0.5,
        joules=None,
        energy_quality="unmeasured",
        file_sha256=file_sha256,
    )


def test_what_is_written_is_an_outcomes_file(tmp_path: Path) -> None:
    """The reader of `train-gate` reads the file, and two experts of one model are averaged."""
    outfile = Outfile(tmp_path / "o.jsonl")
    outfile.put(question(), {"a/m": answered(), "b/m": answered(score=0.0), "a/n": answered("n", 0.0)})
    outcomes = read_outcomes(tmp_path / "o.jsonl")
    assert outcomes.experts == ("m", "n")
    assert outcomes.scores.tolist() == [[0.5, 0.0]]
    assert outcomes.chars.tolist() == [[3.0, 3.0]]
    assert outcomes.tasks == ("sums",)


def test_an_outcomes_file_tells_what_file_a_model_was(tmp_path: Path) -> None:
    """Of one whose answers are of two files, or of an unknown one, it tells none."""
    outfile, one, two = Outfile(tmp_path / "o.jsonl"), "ab" * 32, "cd" * 32
    for name, file in (("q1", one), ("q2", two)):
        own = {"a/m": answered(file_sha256=one), "a/n": answered("n", file_sha256=file), "a/o": answered("o")}
        outfile.put(question(name), own)
    outcomes = read_outcomes(tmp_path / "o.jsonl")
    assert outcomes.files == {"m": one}
    assert outcomes.with_experts(["n", "m"]).files == {"m": one}
    assert outcomes.take([0]).with_experts(["n"]).files == {}


def test_another_files_answer_is_none_of_this_one(tmp_path: Path) -> None:
    """An answer without a checksum, as earlier releases kept it, counts whatever the file is now."""
    outfile = Outfile(tmp_path / "o.jsonl")
    outfile.put(question(), {"a/m": answered(file_sha256="ab" * 32), "a/n": answered("n")})
    assert outfile.answer(question(), "a/m", "ab" * 32) is not None
    assert outfile.answer(question(), "a/m", None) is not None
    assert outfile.answer(question(), "a/m", "cd" * 32) is None
    assert outfile.answer(question(), "a/n", "cd" * 32) is not None
    assert outfile.answer(question(), "a/o", None) is None


def test_a_reopened_file_knows_its_answers(tmp_path: Path) -> None:
    """A file that is opened again holds all its answers, with unmeasured joules as unknown."""
    Outfile(tmp_path / "o.jsonl").put(question(), {"a/m": answered()})
    assert Outfile(tmp_path / "o.jsonl").answers(question()) == {"a/m": answered()}


def test_amended_questions_replace_their_line(tmp_path: Path) -> None:
    """A question that gets more answers still has one line."""
    outfile = Outfile(tmp_path / "o.jsonl")
    outfile.put(question(), {"a/m": answered()})
    outfile.put(question("q2"), {"a/m": answered()})
    outfile.put(question(), {"a/m": answered(), "a/n": answered("n")})
    outfile.flush()
    assert (tmp_path / "o.jsonl").read_text().count("\n") == 2
    assert set(Outfile(tmp_path / "o.jsonl").answers(question())) == {"a/m", "a/n"}


@pytest.mark.slow
@given(cut=st.integers(min_value=1, max_value=150))
def test_a_cut_off_last_line_is_dropped(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A last line that is cut anywhere is dropped, the others stay, and the file can be continued."""
    path = tmp_path_factory.mktemp("cut") / "o.jsonl"
    outfile = Outfile(path)
    outfile.put(question(), {"a/m": answered()})
    outfile.put(question("q2"), {"a/m": answered()})
    path.write_bytes(path.read_bytes()[:-cut])
    repaired = Outfile(path)
    assert repaired.repaired
    assert repaired.answers(question()) == {"a/m": answered()}
    assert repaired.answers(question("q2")) == {}
    repaired.put(question("q2"), {"a/m": answered()})
    assert len(read_outcomes(path)) == 2


def test_an_answer_that_finds_the_disk_full_can_be_put_again(tmp_path: Path) -> None:
    """An answer that finds the disk full leaves no half line, and can be put again."""
    path = tmp_path / "o.jsonl"
    outfile = Outfile(path)
    outfile.put(question(), {"a/m": answered()})
    with room_for_bytes(path.stat().st_size + 20), pytest.raises(OSError, match="too large"):
        outfile.put(question("q2"), {"a/m": answered()})
    assert outfile.answers(question("q2")) == {}
    outfile.put(question("q2"), {"a/m": answered()})
    assert len(read_outcomes(path)) == 2


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    """A symbolic link stays a link, and its target is continued and replaced."""
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "o.jsonl")
    outfile = Outfile(link)
    outfile.put(question(), {"a/m": answered()})
    outfile.put(question(), {"a/m": answered(), "a/n": answered("n")})
    outfile.flush()
    assert link.is_symlink()
    assert set(Outfile(tmp_path / "o.jsonl").answers(question())) == {"a/m", "a/n"}


def test_another_question_set_is_refused(tmp_path: Path) -> None:
    """A question whose id is in the file with another prompt is refused."""
    outfile = Outfile(tmp_path / "o.jsonl")
    outfile.put(question(), {"a/m": answered()})
    with pytest.raises(OutfileError, match="another prompt"):
        outfile.answers(question(asked="How few?"))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """A broken line that is not the last one is an error with its number."""
    (tmp_path / "o.jsonl").write_text('{"id": "q1", "prompt": "x"}\nnonsense\n')
    with pytest.raises(OutfileError, match="line 2"):
        Outfile(tmp_path / "o.jsonl")
