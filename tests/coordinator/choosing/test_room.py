"""Tests of which experts have room for a request: barred experts, and queues that are long enough."""

from __future__ import annotations

import msgspec
import pytest

from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.choosing.selector import Selector
from tests.coordinator.experts import expert, selector, speed


def test_an_expert_that_nobody_is_to_be_sent_to_is_not_chosen() -> None:
    """A barred expert is not chosen and the plan says why; where all are barred, none counts as live."""
    experts = [expert("agent-1"), expert("agent-2")]
    asked = SelectionRequest(model="moe2", demand=Demand(10, 20), barred={"agent-1/m": "its breaker is open"})
    decided = selector().select(asked, experts, {}, 0)
    assert isinstance(decided, Selection)
    assert decided.first.expert.key == "agent-2/m"
    assert decided.outlook.ruled_out == {"agent-1/m": "its breaker is open"}
    everybody = msgspec.structs.replace(asked, barred={found.key: "its breaker is open" for found in experts})
    refused = selector().select(everybody, experts, {}, 0)
    assert isinstance(refused, NoExpert)
    assert refused.code == "no_live_expert"


@pytest.mark.parametrize(
    ("n", "fields", "text"),
    [
        (1, {"barred": ("agent-1/m",)}, "The only expert that could answer keeps failing; try again later."),
        (2, {"barred": ("agent-1/m", "agent-2/m")}, "All 2 experts that could answer keep failing; try again later."),
        (1, {"excluded": ("agent-1/m",)}, "The only expert that could answer has failed this request."),
        (2, {"excluded": ("agent-1/m", "agent-2/m")}, "All 2 experts that could answer have failed this request."),
    ],
)
def test_a_refusal_speaks_of_one_expert_as_of_one(n: int, fields: dict[str, tuple[str, ...]], text: str) -> None:
    """One expert that is ruled out is "the only expert", several are counted."""
    experts = [expert(f"agent-{number + 1}") for number in range(n)]
    barred = dict.fromkeys(fields.get("barred", ()), "its breaker is open")
    excluded = frozenset(fields.get("excluded", ()))
    asked = SelectionRequest(model="moe2", demand=Demand(10, 20), barred=barred, excluded=excluded)
    refused = selector().select(asked, experts, {}, 0)
    assert isinstance(refused, NoExpert)
    assert refused.message == text


def test_no_more_are_queued_with_an_agent_than_start_soon() -> None:
    """An expert's queue is used only for requests that start within `longest_queue_s`."""
    experts = [expert(slots=2, max_queue=32)]
    short = Selector(Scorer(None), {}, clock=lambda: 0.0, longest_queue_s=2.0)
    asked = SelectionRequest(model="moe2", demand=Demand(10, 20))
    assert isinstance(short.select(asked, experts, {"agent-1/m": 5}, 0), Selection)
    refused = short.select(asked, experts, {"agent-1/m": 6}, 0)
    assert isinstance(refused, NoExpert)
    assert (refused.code, "4 queue places" in refused.message) == ("overloaded", True)


def test_one_place_in_a_queue_is_always_used() -> None:
    """One queue place is used however slow it moves, so that the slot stays busy."""
    crawling = msgspec.structs.replace(speed(1000.0, 50.0, slots=1), service_s=100.0)
    short = Selector(Scorer(None), {}, clock=lambda: 0.0, longest_queue_s=2.0)
    asked = SelectionRequest(model="moe2", demand=Demand(10, 20))
    experts = [expert(slots=1, max_queue=32, latency=crawling)]
    assert isinstance(short.select(asked, experts, {"agent-1/m": 1}, 0), Selection)
    assert isinstance(short.select(asked, experts, {"agent-1/m": 2}, 0), NoExpert)
    unmeasured = [expert(slots=1, max_queue=32, latency=None)]
    assert isinstance(short.select(asked, unmeasured, {"agent-1/m": 32}, 1), Selection)
