"""Tests that conversations go on where their beginning is cached, among equally good experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moe2.common.link.messages import JobUsage
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt, Tool
from moe2.coordinator.choosing.prefix_affinity import Affinities, Affinity, prefixes
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.choosing.result import Selection
from tests.coordinator.experts import expert, selector, speed

KEY, OTHER = "agent-1/m", "agent-2/m"


def chat(*texts: str, tools: tuple[Tool, ...] = ()) -> ChatPrompt:
    """A conversation with messages of user and assistant in turn."""
    roles = ("user", "assistant")
    messages = tuple(ChatMessage(role=roles[n % 2], content=text) for n, text in enumerate(texts))
    return ChatPrompt(messages=messages, tools=tools)


def usage(prompt_tokens: int = 100, cached_tokens: int = 0) -> JobUsage:
    return JobUsage(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, decoded_tokens=20)


FIRST = prefixes(chat("Hi"))
SECOND = prefixes(chat("Hi", "Hello", "More"))


def test_the_next_turn_finds_who_answered_the_last_one() -> None:
    """The next turn finds the expert that answered, with the tokens of its prompt and its answer."""
    affinities = Affinities()
    affinities.answered(FIRST, KEY, usage())
    assert affinities.find(SECOND) == Affinity(KEY, 120)


def test_another_conversation_finds_nobody() -> None:
    """Other messages, other tools or a plain text find no expert."""
    affinities = Affinities()
    affinities.answered(FIRST, KEY, usage())
    for prompt in (chat("Hello"), chat("Hi", tools=(Tool(name="look"),)), TextPrompt(text="Hi")):
        assert affinities.find(prefixes(prompt)) is None


def test_the_longest_beginning_counts() -> None:
    """The expert that answered the longest beginning is found."""
    affinities = Affinities()
    affinities.answered(FIRST, KEY, usage())
    affinities.answered(SECOND, OTHER, usage(200))
    assert affinities.find(prefixes(chat("Hi", "Hello", "More", "Even more", "And?"))) == Affinity(OTHER, 220)
    assert affinities.find(FIRST) == Affinity(KEY, 120)


def test_an_expert_whose_cache_does_not_hold_is_not_counted_on() -> None:
    """An expert that reports too few cached tokens is not relied on until it reports enough again."""
    affinities = Affinities()
    affinities.answered(FIRST, KEY, usage())
    for _ in range(4):
        affinities.answered(SECOND, KEY, usage(cached_tokens=0))
    assert affinities.find(SECOND) is None
    for _ in range(4):
        affinities.answered(SECOND, KEY, usage(cached_tokens=100))
    assert affinities.find(SECOND) is not None


def test_one_miss_is_forgiven() -> None:
    """An expert is still relied on after a single miss."""
    affinities = Affinities()
    affinities.answered(FIRST, KEY, usage())
    affinities.answered(SECOND, KEY, usage(cached_tokens=0))
    assert affinities.find(SECOND) is not None


def test_a_lost_agent_holds_nothing() -> None:
    """Everything about an agent's experts is forgotten when it is gone."""
    affinities = Affinities()
    affinities.answered(FIRST, KEY, usage())
    affinities.forget("agent-1")
    assert affinities.find(FIRST) is None


def test_the_oldest_conversations_are_forgotten() -> None:
    """Beyond the limit the oldest conversation is forgotten first."""
    affinities = Affinities(max_conversations=2)
    chains = [prefixes(chat(text)) for text in "abc"]
    for chain in chains:
        affinities.answered(chain, KEY, usage())
    assert [affinities.find(chain) is not None for chain in chains] == [False, True, True]


def test_saved_tokens_leave_one_to_prefill() -> None:
    """Cached tokens need no prefill, but for one."""
    tokens = np.array([50, 60])
    assert Affinity(OTHER, 40).cached(1, tokens).tolist() == [0, 40]
    assert Affinity(KEY, 400).cached(0, tokens).tolist() == [49, 0]


def test_an_expert_that_is_gone_changes_nothing() -> None:
    """A beginning that an expert holds which is not there any more is read as any other."""
    decided = chosen(expert("agent-1"), affinity=Affinity("agent-9/m", 900))
    assert decided.first.prediction.shape.cached_tokens == 0


def test_what_is_cached_leaves_the_lengths_as_they_were() -> None:
    """The lengths that were handed in are not changed: they may be another choice's, too."""
    tokens = np.array([50, 60])
    Affinity(OTHER, 40).cached(1, tokens)
    assert tokens.tolist() == [50, 60]


# --- In the choice ----------------------------------------------------------------------------------------------------


def chosen(*experts: Any, affinity: Affinity | None, **busy: int) -> Selection:
    asked = SelectionRequest(model="moe2", demand=Demand(1000, 20), affinity=affinity)
    in_flight = {f"{name.replace('_', '-')}/m": n for name, n in busy.items()}
    decided = selector().select(asked, experts, in_flight, 0)
    assert isinstance(decided, Selection)
    return decided


def test_of_equal_experts_the_one_that_holds_the_beginning_answers() -> None:
    """The expert that holds the beginning answers, and is predicted to begin sooner."""
    experts = (expert("agent-1"), expert("agent-2"))
    assert chosen(*experts, affinity=None).first.expert.key == KEY
    decided = chosen(*experts, affinity=Affinity(OTHER, 900))
    assert decided.first.expert.key == OTHER
    assert decided.first.prediction.shape.prompt_tokens == 100


def test_it_is_no_reason_to_go_to_a_later_one() -> None:
    """An expert with a queue does not win by its cache, because waiting may cost more."""
    experts = (expert("agent-1"), expert("agent-2"))
    assert chosen(*experts, affinity=Affinity(OTHER, 900), agent_2=4).first.expert.key == KEY


def test_it_is_no_reason_to_go_to_a_worse_one() -> None:
    """An expert with a lower score does not win by its cache."""
    experts = (expert("agent-1", "big", parameters=7_000_000_000), expert("agent-2", "m", parameters=100_000_000))
    assert chosen(*experts, affinity=Affinity(OTHER, 900)).first.expert.key == "agent-1/big"


def test_among_the_equally_soon_it_decides() -> None:
    """Where no prefill cost was measured, the cache decides between experts that finish equally soon."""
    free = speed(1e12, 50.0)
    experts = (expert("agent-1", latency=free), expert("agent-2", latency=free))
    assert chosen(*experts, affinity=Affinity(OTHER, 0)).first.expert.key == OTHER


@pytest.mark.parametrize("prompt_tokens", [-100, 2**62])
def test_nonsense_about_a_prompts_length_is_not_remembered(prompt_tokens: int) -> None:
    """A reported length that no context has is ignored, so that it cannot spoil later predictions."""
    affinities = Affinities()
    affinities.answered(FIRST, KEY, usage(prompt_tokens))
    assert affinities.find(SECOND) is None
