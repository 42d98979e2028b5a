"""A file is its checksum: what is known of it holds under every name that it goes by."""

from __future__ import annotations

from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.forecast import Roster
from moe2.coordinator.choosing.lengths import PromptLengths
from moe2.coordinator.choosing.prefix_affinity import Affinities
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.gate.feedback import Feedback, FeedbackBook, Tally
from moe2.coordinator.gate.gate import Gate
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


def trained_on(made: MadeGate, **files: str) -> Scorer:
    """A scorer whose gate knows what file each of these experts was."""
    gate = made.gate
    named = {name.replace("_", "-"): sha256 for name, sha256 in files.items()}
    return Scorer(Gate(gate.parameters, gate.feature_config, gate.experts, gate.tau, files=named))


def scored(scorer: Scorer, *experts: Expert) -> list[tuple[float, bool]]:
    """Each expert's score of a prompt, and whether it was trained."""
    scorer.fit(experts)
    found = scorer.score("python loop", Roster(experts))
    return list(zip(found.scores.tolist(), found.trained.tolist(), strict=True))


def test_the_gate_knows_a_file_whatever_it_is_called(made: MadeGate) -> None:
    """A trained file that was renamed on every host keeps its scores, also against another file's familiar name."""
    by_name = scored(Scorer(made.gate), of_file("expert-0", None), of_file("expert-1", None))
    scorer = trained_on(made, expert_0="ab" * 32, expert_1="cd" * 32)
    assert scored(scorer, of_file("assistant", "ab" * 32), of_file("expert-0", "cd" * 32)) == by_name
    assert scorer.warnings() == ()


def test_two_files_under_one_name_are_two_models(made: MadeGate) -> None:
    """Each has its own score, on whichever host it is."""
    scorer = trained_on(made, expert_0="ab" * 32, expert_1="cd" * 32)
    one, two = expert("one", "m", file_sha256="ab" * 32), expert("two", "m", file_sha256="cd" * 32)
    assert scored(scorer, one, two) == scored(Scorer(made.gate), of_file("expert-0", None), of_file("expert-1", None))


def test_another_file_under_a_trained_name_is_told_and_taken_for_it(made: MadeGate) -> None:
    """Nothing better is known of it; the notice says that it is another file."""
    scorer = trained_on(made, expert_0="ab" * 32)
    assert scored(scorer, of_file("expert-0", "ef" * 32)) == scored(Scorer(made.gate), of_file("expert-0", None))
    assert [warning.message for warning in scorer.warnings()] == [
        "expert-0 uses what the gate learnt of expert-0, which was another file."
    ]


def test_users_scores_count_for_the_file() -> None:
    """Those that were given under one name move the other one's prior as well; an unknown file shares nothing."""
    scorer = Scorer(None, tallies={"a": Tally(0.0, 50)})
    experts = (of_file("a", "ab" * 32), of_file("b", "ab" * 32), of_file("c", None), of_file("d", None))
    scorer.fit(experts)
    a, b, c, d = scorer.score("hello", Roster(experts)).scores
    assert a == b < c == d


def feedback(number: int, model: str, sha256: str | None) -> Feedback:
    """A bad score of an answer from this file, under this name."""
    return Feedback(
        request_id=f"req-{number}",
        expert=f"agent/{model}",
        model=model,
        score=0.0,
        prompt_sha256="",
        at_unix_s=1.0,
        file_sha256=sha256,
    )


def test_scores_stay_with_a_file_that_is_renamed_and_leave_a_name_that_gets_another_file() -> None:
    """What was kept before scores had checksums counts by name, as it did."""
    book = FeedbackBook([feedback(n, "old-name", "ab" * 32) for n in range(50)])
    scorer = Scorer(None, tallies=book.tallies)
    experts = (of_file("new-name", "ab" * 32), of_file("old-name", "cd" * 32), of_file("other", None))
    scorer.fit(experts)
    renamed, replaced, other = scorer.score("hello", Roster(experts)).scores
    assert renamed < replaced == other
    by_name = Scorer(None, tallies=FeedbackBook([feedback(n, "old-name", None) for n in range(50)]).tallies)
    by_name.fit(experts)
    assert by_name.score("hello", Roster(experts)).scores[1] < other


def test_one_file_has_one_prior_whatever_its_names_tell() -> None:
    """A name that tells a size helps the other name of the same file."""
    scorer = Scorer(None)
    experts = (of_file("qwen-7b", "ab" * 32), of_file("assistant", "ab" * 32), of_file("plain", "cd" * 32))
    scorer.fit(experts)
    named, unnamed, plain = scorer.score("hello", Roster(experts)).scores
    assert named == unnamed != plain


def test_what_a_file_makes_of_prompts_is_learned_under_all_its_names() -> None:
    """Two names are one model in the roster; before a checksum is known a name stands for it."""
    experts = (of_file("a", "ab" * 32), of_file("b", "ab" * 32), of_file("c", None), of_file("d", None))
    roster = Roster(experts)
    assert len(roster.different_models) == 3
    assert roster.model_place[0] == roster.model_place[1]
    lengths = PromptLengths()
    for _ in range(20):
        lengths.observe(experts[0].identity, 100, 200)
    assert lengths.demand_on(experts[1].identity, Demand(100, 10)).prompt_tokens > 150
    assert lengths.demand_on(experts[2].identity, Demand(100, 10)).prompt_tokens == 100


def test_a_conversation_is_not_looked_for_in_another_file() -> None:
    """An expert that serves another file by now has nothing of it in its cache."""
    affinities, chain = Affinities(), (b"one",)
    before, after = of_file("m", "ab" * 32), of_file("m", "cd" * 32)
    usage = JobUsage(prompt_tokens=100, decoded_tokens=10)
    affinities.answered(chain, before.key, usage, before.identity)
    affinity = affinities.find(chain)
    assert affinity is not None
    assert affinity.holds_on(before)
    assert not affinity.holds_on(after)
    affinities.answered(chain, before.key, usage, "m")
    told_later = affinities.find(chain)
    assert told_later is not None
    assert told_later.holds_on(before)
