"""The shared memory for bodies that are on their way."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.http.access.upload import BodyMemory


def test_who_is_alone_may_have_it_all() -> None:
    """A client that is alone may use all of the memory, and not a byte more."""
    memory = BodyMemory(100)
    assert memory.take("app", 100)
    assert not memory.take("app", 1)


def test_who_came_first_keeps_nobody_out() -> None:
    """A second client has its half although the first one holds everything."""
    memory = BodyMemory(100)
    assert memory.take("greedy", 100)
    assert memory.take("honest", 50)
    assert not memory.take("honest", 1)


def test_who_sends_nothing_takes_nobodys_share() -> None:
    """Only who holds bytes counts among those who share the memory."""
    memory = BodyMemory(100)
    assert memory.take("greedy", 100)
    assert memory.take("empty", 0)
    assert memory.take("honest", 50)


def test_what_is_given_back_can_be_had_again() -> None:
    """Released memory can be used again, by the same client too."""
    memory = BodyMemory(100)
    assert memory.take("app", 100)
    memory.give_back("app", 60)
    assert memory.take("app", 60)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 60)), max_size=60))
def test_little_more_than_the_room_is_held(steps: list[tuple[str, int]]) -> None:
    """Four clients hold at most the harmonic sum of the memory, and all of it is released."""
    memory, held = BodyMemory(100), Counter[str]()
    for client, n_bytes in steps:
        if memory.take(client, n_bytes):
            held[client] += n_bytes
        assert memory.held_bytes == held.total() <= 100 * (1 + 1 / 2 + 1 / 3 + 1 / 4)
    for client, n_bytes in held.items():
        memory.give_back(client, n_bytes)
    assert memory.held_bytes == 0
