"""The receipt of a request."""

from __future__ import annotations

import msgspec

from moe2.common.cost import Quantiles
from moe2.common.energy import Energy
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.explain import Predicted
from moe2.coordinator.serving.receipt import Receipt, Seconds, TokenCounts, joint_receipt, receipt_of
from tests.coordinator.experts import expert
from tests.coordinator.lives import USAGE, LifeBench


def answered() -> LifeBench:
    life = LifeBench().admitted()
    life.now_s = 101.0
    life.tokens("a")
    life.now_s = 102.5
    life.done()
    return life


def outcomes(receipt: Receipt) -> list[tuple[str, str]]:
    return [(line.expert, line.outcome) for line in receipt.experts]


def test_an_answer_is_accounted_in_full() -> None:
    """Who, what it took, by phase, and what the choice was based on."""
    receipt = receipt_of(answered().life)
    assert receipt.request_id == "req-1"
    assert receipt.tokens == TokenCounts(prompt=7, cached=3, decoded=5)
    assert receipt.seconds == Seconds(
        overhead=0.5, queue=0.5, prefill=0.25, decode=1.0, ttft=1.0, total=2.5, admission=0.0, simulated=False
    )
    assert receipt.predicted == Predicted(
        ttft_s=Quantiles(0.01, 0.01), total_s=Quantiles(0.39, 0.39), energy_j=None, energy_quality=None
    )
    assert receipt.decision is not None
    assert [row.expert for row in receipt.decision.experts if row.chosen] == ["agent-1/m"]
    [line] = receipt.experts
    assert (line.expert, line.agent, line.model, line.outcome) == ("agent-1/m", "name of agent-1", "m", "answered")
    assert (line.decoded_tokens, line.error) == (5, None)


def test_guesses_are_on_the_receipt() -> None:
    """Those that went through the model, and those that were right; null where the agent guesses nothing."""
    life = LifeBench().admitted()
    life.tokens("a")
    life.done(usage=msgspec.structs.replace(USAGE, drafted_tokens=9, accepted_tokens=2))
    receipt = receipt_of(life.life)
    assert (receipt.tokens.drafted, receipt.tokens.accepted) == (9, 2)
    assert (receipt.experts[0].drafted_tokens, receipt.experts[0].accepted_tokens) == (9, 2)
    assert receipt_of(answered().life).tokens.drafted is None


def test_guesses_of_a_draft_model_are_on_the_receipt() -> None:
    """Apart from those of the text; null where no draft model guesses."""
    life = LifeBench().admitted()
    life.tokens("a")
    usage = msgspec.structs.replace(USAGE, drafted_tokens=9, accepted_tokens=2)
    life.done(usage=msgspec.structs.replace(usage, model_drafted_tokens=4, model_accepted_tokens=1))
    receipt = receipt_of(life.life)
    assert (receipt.tokens.drafted_by_model, receipt.tokens.accepted_by_model) == (4, 1)
    assert (receipt.experts[0].drafted_by_model, receipt.experts[0].accepted_by_model) == (4, 1)
    assert receipt_of(answered().life).tokens.drafted_by_model is None


def test_joules_come_with_their_quality() -> None:
    """For the request and for each expert."""
    receipt = receipt_of(answered().life)
    for energy in (receipt.energy, receipt.experts[0].energy):
        assert (energy.joules, energy.marginal_joules, energy.quality) == (2.0, 1.0, "measured_counter")


def test_every_key_is_there_and_unknown_is_null() -> None:
    """A reader must not have to guess what a missing key means."""
    body = msgspec.json.decode(msgspec.json.encode(receipt_of(LifeBench().life)))
    assert set(body) == set(Receipt.__struct_fields__)
    assert set(body["seconds"].values()) == {None}
    assert set(body["tokens"].values()) == {None}
    assert body["predicted"] is None
    assert body["experts"] == []
    assert set(body["energy"]) == set(Energy.__struct_fields__)
    assert body["energy"]["joules"] is None
    assert body["energy"]["quality"] == "unmeasured"


def test_failed_attempts_are_accounted_too() -> None:
    """What they burnt is part of what the answer cost."""
    life = LifeBench().admitted()
    life.failed()
    life.done(attempt=1)
    receipt = receipt_of(life.life)
    assert outcomes(receipt) == [("agent-1/m", "failed"), ("agent-2/m", "answered")]
    assert receipt.experts[0].error == "It died."
    assert receipt.energy.joules == 4.0


def test_a_lost_attempt_makes_the_sum_unknown() -> None:
    """Nobody can say what it burnt, and the receipt says why."""
    life = LifeBench().admitted()
    life.lost()
    life.done(attempt=1)
    receipt = receipt_of(life.life)
    assert outcomes(receipt) == [("agent-1/m", "lost"), ("agent-2/m", "answered")]
    assert receipt.experts[0].decoded_tokens is None
    assert receipt.energy.joules is None
    assert "The link to name of agent-1 broke." in (receipt.energy.reason or "")


def test_a_refused_attempt_cost_nothing() -> None:
    """That is known, so the sum stays known."""
    life = LifeBench().admitted()
    life.failed("queue_full", usage=None, message="Full.")
    life.done(attempt=1)
    receipt = receipt_of(life.life)
    assert receipt.experts[0].energy.joules == 0.0
    assert receipt.energy.joules == 2.0
    assert receipt.energy.quality == "measured_counter"


def test_an_unmeasured_answer_has_no_joules() -> None:
    """And not zero."""
    life = LifeBench().admitted()
    life.failed(usage=JobUsage(decoded_tokens=3))
    life.done(attempt=1)
    receipt = receipt_of(life.life)
    assert receipt.energy.joules is None
    assert receipt.energy.quality == "unmeasured"


def test_a_running_request_has_a_receipt_of_what_is_known() -> None:
    """The overhead is, the rest is not yet."""
    receipt = receipt_of(LifeBench().admitted().life)
    assert outcomes(receipt) == [("agent-1/m", "running")]
    assert receipt.seconds == Seconds(
        overhead=0.5, queue=None, prefill=None, decode=None, ttft=None, total=None, admission=0.0, simulated=False
    )
    assert receipt.energy.joules is None


def test_a_cancelled_request_shows_what_it_cost() -> None:
    """Once its agent has told."""
    life = LifeBench().admitted()
    life.gone()
    life.done("cancelled")
    receipt = receipt_of(life.life)
    assert outcomes(receipt) == [("agent-1/m", "cancelled")]
    assert receipt.tokens.decoded == USAGE.decoded_tokens
    assert receipt.energy.joules == 2.0


def test_several_answers_have_one_receipt() -> None:
    """Everything that they took is in it; a prompt that they have in common counts once, as OpenAI counts it."""
    first, second = answered().life, answered().life
    second.request = first.request
    joint = joint_receipt([first, second], [receipt_of(first), receipt_of(second)])
    assert joint.tokens == TokenCounts(prompt=7, cached=3, decoded=10)
    assert joint.energy.joules == 4.0
    assert len(joint.experts) == 2
    assert (joint.seconds.ttft, joint.seconds.total) == (1.0, 2.5)


def test_what_is_unknown_of_one_answer_is_unknown_of_all() -> None:
    """A sum without it would understate."""
    first, second = answered().life, LifeBench().admitted().life
    joint = joint_receipt([first, second], [receipt_of(first), receipt_of(second)])
    assert joint.tokens.decoded is None
    assert joint.seconds.total is None
    assert joint.energy.joules is None


def test_a_limit_that_the_context_shortened_is_told() -> None:
    """What was left for the answer, where more was asked for."""
    life = answered().life
    assert life.leading is not None
    context_tokens = life.leading.expert.report.context_tokens
    for max_tokens, told in ((context_tokens - 7, None), (context_tokens - 6, context_tokens - 7), (None, None)):
        generation = msgspec.structs.replace(life.request.generation, max_tokens=max_tokens)
        life.request = msgspec.structs.replace(life.request, generation=generation)
        assert receipt_of(life).max_tokens_within_context == told


def test_a_decision_is_shown_once_and_anew_after_another_choice() -> None:
    """Receipts of one request share what was made of its decision, until somebody else is to answer."""
    life = LifeBench(expert("agent-1"), expert("agent-2")).admitted()
    first = receipt_of(life.life).decision
    assert receipt_of(life.life).decision is first
    life.failed()
    second = receipt_of(life.life).decision
    assert second is not None
    assert second is not first
