"""A file is its checksum: what is known of it holds under every name that it goes by."""

from __future__ import annotations

from moe2.coordinator.choosing.forecast import Roster
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.gate.feedback import Tally
from tests.coordinator.experts import expert
from tests.fakes.gates import MadeGate


def of_file(model: str, sha256: str | None) -> Expert:
    """An expert that serves this file under a name."""
    return expert(f"agent-{model}", model, file_sha256=sha256)


def test_a_trained_model_is_known_by_its_file_under_another_name(made: MadeGate) -> None:
    """One that shares the checksum of a trained expert is scored as that one; one with another file is not."""
    scorer = Scorer(made.gate)
    experts = (of_file("expert-0", "ab" * 32), of_file("mine", "ab" * 32), of_file("other", "cd" * 32))
    scorer.fit(experts)
    scores = scorer.score("python loop", Roster(experts))
    by_name = dict(zip((one.model for one in experts), zip(scores.scores, scores.trained, strict=True), strict=True))
    assert by_name["mine"] == by_name["expert-0"]
    assert not by_name["other"][1]


def test_users_scores_count_for_the_file() -> None:
    """Those that were given under one name move the other one's prior as well; an unknown file shares nothing."""
    scorer = Scorer(None, tallies={"a": Tally(0.0, 50)})
    experts = (of_file("a", "ab" * 32), of_file("b", "ab" * 32), of_file("c", None), of_file("d", None))
    scorer.fit(experts)
    a, b, c, d = scorer.score("hello", Roster(experts)).scores
    assert a == b < c == d
