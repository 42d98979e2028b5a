"""Tests of users' scores: whom they belong to, what they change, and how they outlive a restart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.choosing import quality
from moe2.coordinator.choosing.forecast import Roster
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.gate import feedback as feedback_module
from moe2.coordinator.gate.feedback import AlreadyScoredError, Feedback, FeedbackBook, Tally, UnknownRequestError
from moe2.coordinator.gate.feedback_file import FeedbackFile
from moe2.coordinator.gate.prior import ExpertFacts, facts_from_name
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.routes.books import parse_feedback
from moe2.coordinator.training.feedback_rows import with_feedback
from moe2.coordinator.training.outcomes import OutcomesError
from tests.coordinator.experts import expert
from tests.coordinator.training.outcome_tables import synthetic_outcomes
from tests.fakes.fulldisk import room_for_bytes


def answered(book: FeedbackBook, request_id: str = "req-1", **fields: str) -> None:
    book.answered(request_id, **{"expert": "a/m", "model": "m", "prompt": "Why?", **fields})


def scored(book: FeedbackBook, request_id: str = "req-1", score: float = 1.0) -> Feedback:
    feedback = book.feedback(request_id, score, 7.0)
    book.accept(feedback)
    return feedback


def test_a_score_belongs_to_the_expert_that_answered() -> None:
    """A score names the expert that answered, and adds to its model's tally."""
    book = FeedbackBook()
    answered(book)
    answered(book, "req-2", expert="b/m")
    assert scored(book, score=0.5).expert == "a/m"
    assert scored(book, "req-2").expert == "b/m"
    assert book.tallies == {"m": Tally(1.5, 2)}


def test_prompts_are_kept_only_where_that_is_wanted() -> None:
    """Without `keep_prompts` a score holds only the hash of its prompt."""
    for keep, prompt in ((False, None), (True, "Why?")):
        book = FeedbackBook(keep_prompts=keep)
        answered(book)
        feedback = scored(book)
        assert feedback.prompt == prompt
        assert len(feedback.prompt_sha256) == 64


def test_a_request_is_scored_once_and_only_if_known() -> None:
    """A known request takes one score, and a score that was not kept can be sent again."""
    book = FeedbackBook()
    with pytest.raises(UnknownRequestError, match="req-1"):
        scored(book)
    answered(book)
    book.feedback("req-1", 1.0, 0.0)
    assert book.tallies == {}
    scored(book)
    with pytest.raises(AlreadyScoredError):
        scored(book)


def test_only_the_key_that_asked_may_score() -> None:
    """A request is unknown to every other key, and to a client without a key."""
    book = FeedbackBook()
    book.answered("req-1", expert="a/m", model="m", prompt="Why?", key_id="one")
    for key_id in ("two", None):
        with pytest.raises(UnknownRequestError):
            book.feedback("req-1", 1.0, 0.0, key_id=key_id)
    book.accept(book.feedback("req-1", 1.0, 0.0, key_id="one"))
    with pytest.raises(UnknownRequestError):
        book.feedback("req-1", 1.0, 0.0, key_id="two")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest request is forgotten first."""
    monkeypatch.setattr(feedback_module, "MAX_REQUESTS", 2)
    book = FeedbackBook()
    for request_id in ("req-1", "req-2", "req-3"):
        answered(book, request_id)
    scored(book, "req-2")
    with pytest.raises(UnknownRequestError):
        scored(book, "req-1")


def test_scores_move_the_prior() -> None:
    """Twenty scores weigh as much as the prior itself."""
    book = FeedbackBook()
    scorer = Scorer(None, tallies=book.tallies)
    good, bad = expert("a", "good-8b"), expert("b", "bad-8b")
    scorer.fit((good, bad))
    roster = Roster((good, bad))
    worth = scorer.set_worth(roster)
    assert scorer.score("", roster).scores.tolist() == pytest.approx([0.5, 0.5])
    for number in range(20):
        for model, score in (("good-8b", 1.0), ("bad-8b", 0.0)):
            answered(book, f"{model}-{number}", model=model)
            scored(book, f"{model}-{number}", score)
    scorer.tallies_changed()
    assert scorer.score("", roster).scores.tolist() == pytest.approx([0.75, 0.25])
    assert scorer.set_worth(roster) is not worth


def test_a_fit_to_the_same_models_counts_what_users_have_scored_since() -> None:
    """The slow level's scorer is told of no score: it finds them when it looks at the fleet again."""
    book = FeedbackBook()
    scorer = Scorer(None, tallies=book.tallies)
    fleet = (expert("a", "good-8b"), expert("b", "bad-8b"))
    scorer.fit(fleet)
    for number in range(20):
        answered(book, f"good-{number}", model="good-8b")
        scored(book, f"good-{number}", 1.0)
    scorer.fit((expert("a", "good-8b", slots=9), fleet[1]))
    assert scorer.score("", Roster(fleet)).scores.tolist() == pytest.approx([0.75, 0.5])


def test_reports_of_other_speeds_leave_the_gate_fitted_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy fleet reports new speeds all the time; the models are looked at again only when one of them is another."""
    scorer = Scorer(None)
    looked_at: list[str] = []

    def noted(name: str) -> ExpertFacts:
        looked_at.append(name)
        return facts_from_name(name)

    monkeypatch.setattr(quality, "facts_from_name", noted)
    scorer.fit((expert("a", "one-8b"), expert("b", "two-8b")))
    scorer.fit((expert("a", "one-8b", slots=9), expert("b", "two-8b")))
    assert sorted(looked_at) == ["one-8b", "two-8b"]
    scorer.fit((expert("a", "one-8b"), expert("b", "two-8b", parameters=10**9)))
    assert sorted(looked_at) == ["one-8b", "one-8b", "two-8b", "two-8b"]


# --- The file ---------------------------------------------------------------------------------------------------------


def entry(request_id: str = "req-1", **fields: Any) -> Feedback:
    return Feedback(
        **{
            "request_id": request_id,
            "expert": "a/m",
            "model": "m",
            "score": 1.0,
            "prompt_sha256": "0",
            "at_unix_s": 1.0,
            **fields,
        }
    )


def test_a_restart_keeps_the_counts(tmp_path: Path) -> None:
    """The file is read at the start; only its owner may read it."""
    file = FeedbackFile(tmp_path / "new" / "feedback.jsonl")
    assert file.read() == []
    file.append(entry())
    file.append(entry("req-2", score=0.5))
    assert FeedbackBook(FeedbackFile(file.path).read()).tallies == {"m": Tally(1.5, 2)}
    assert file.path.stat().st_mode & 0o077 == 0


@given(cut=st.integers(1, 100))
def test_a_cut_off_line_costs_only_itself(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Scores that are written after a cut-off line are read again."""
    file = FeedbackFile(tmp_path_factory.mktemp("cut") / "feedback.jsonl")
    file.append(entry())
    whole = file.path.stat().st_size
    file.append(entry("req-2"))
    file.path.write_bytes(file.path.read_bytes()[:-cut] if cut < whole else b"")
    survivors = FeedbackFile(file.path).read()
    file.append(entry("req-3"))
    assert FeedbackFile(file.path).read() == [*survivors, entry("req-3")]


def test_a_score_that_finds_the_disk_full_is_told_and_leaves_no_half_line(tmp_path: Path) -> None:
    """A score that finds the disk full is an error, and the scores before and after it are kept."""
    file = FeedbackFile(tmp_path / "feedback.jsonl")
    file.append(entry())
    with room_for_bytes(file.path.stat().st_size + 20), pytest.raises(OSError, match="too large"):
        file.append(entry("req-2"))
    file.append(entry("req-3"))
    assert file.read() == [entry(), entry("req-3")]
    assert file.damaged_lines == 0


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """A cut-off line is passed over, so that a coordinator starts on a full disk and training reads what it may not
    write."""
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(b'{"request_id": "req')
    file = FeedbackFile(path)
    assert (file.read(), file.damaged_lines) == ([], 1)
    assert path.read_bytes() == b'{"request_id": "req'


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"score": 2}', "\x00"])
def test_damaged_lines_are_counted_and_passed_over(tmp_path: Path, line: str) -> None:
    """Damaged lines are counted, and never keep a coordinator from starting."""
    file = FeedbackFile(tmp_path / "feedback.jsonl")
    file.append(entry())
    with file.path.open("a") as opened:
        opened.write(line + "\n")
    file.append(entry("req-2", score=7.0))
    assert file.read() == [entry()]
    assert file.damaged_lines == 2


# --- The body ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"score": 1}', "request_id"),
        (b'{"request_id": 5, "score": 1}', "request_id"),
        (b'{"request_id": "req-1"}', "score"),
        (b'{"request_id": "req-1", "score": -0.1}', "score"),
        (b'{"request_id": "req-1", "score": 1.1}', "score"),
        (b'{"request_id": "req-1", "score": true}', "score"),
        (b'{"request_id": "req-1", "score": "good"}', "score"),
        (b'{"request_id": "req-1", "score": 1, "why": "x"}', "why"),
    ],
)
def test_a_bad_score_is_400_by_name(body: bytes, param: str | None) -> None:
    """A bad field of a score is answered with 400 and the field's name."""
    with pytest.raises(ApiError) as raised:
        parse_feedback(body)
    assert (raised.value.status, raised.value.param) == (400, param)


# --- Training ---------------------------------------------------------------------------------------------------------


def test_kept_prompts_join_the_train_rows(tmp_path: Path) -> None:
    """Each usable score becomes a train row with one known score."""
    pool = synthetic_outcomes(60)
    file = FeedbackFile(tmp_path / "feedback.jsonl")
    file.append(entry(model=pool.experts[1], prompt="Why so?", score=0.25))
    file.append(entry("req-2", model="stranger", prompt="Why?"))
    file.append(entry("req-3", model=pool.experts[1]))
    joined, count = with_feedback(pool, file.path)
    assert (count, len(joined)) == (1, len(pool) + 1)
    assert (joined.prompts[-1], joined.splits[-1], joined.tasks[-1]) == ("Why so?", "train", "feedback")
    assert joined.scores[-1, 1] == 0.25
    assert (~(joined.scores[-1] >= 0)).sum() == len(pool.experts) - 1


def test_scores_of_a_file_join_its_column_whatever_it_was_called(tmp_path: Path) -> None:
    """A name counts where no checksum says otherwise, and not for a score that another file got."""
    pool = replace(synthetic_outcomes(60), files={"expert-0": "ab" * 32, "expert-1": "cd" * 32})
    file = FeedbackFile(tmp_path / "feedback.jsonl")
    for number, (model, sha256) in enumerate(
        (("renamed", "cd" * 32), ("expert-1", "ab" * 32), ("expert-0", "ef" * 32), ("expert-2", "ef" * 32))
    ):
        file.append(entry(f"req-{number}", model=model, prompt="Why?", score=0.25, file_sha256=sha256))
    joined, count = with_feedback(pool, file.path)
    assert count == 3
    assert [int(np.flatnonzero(row == 0.25)[0]) for row in joined.scores[-3:]] == [1, 0, 2]
    assert joined.files == pool.files


def test_feedback_without_prompts_teaches_nothing(tmp_path: Path) -> None:
    """A feedback file without usable scores, or an absent one, is an error with a remedy."""
    pool, file = synthetic_outcomes(60), FeedbackFile(tmp_path / "feedback.jsonl")
    with pytest.raises(OutcomesError, match="no feedback file"):
        with_feedback(pool, file.path)
    file.append(entry(model=pool.experts[0]))
    with pytest.raises(OutcomesError, match="None of the 1 scores"):
        with_feedback(pool, file.path)
