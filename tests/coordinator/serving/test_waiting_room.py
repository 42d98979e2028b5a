"""The waiting room: bounded, in order, fair among keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.serving.waiting_room import Entered, WaitingRoom, retry_after_s, whole_seconds
from tests.coordinator.experts import expert, speed


def room_with(*requests: tuple[str, str | None], most: int = 4) -> WaitingRoom:
    room = WaitingRoom(most)
    for request_id, key_id in requests:
        assert room.enter(request_id, model="m", key_id=key_id)
    return room


def test_one_keys_requests_keep_their_order() -> None:
    """First come, first served."""
    room = room_with(("1", None), ("2", None), ("3", None))
    assert list(room.in_turn()) == ["1", "2", "3"]


def test_keys_take_turns() -> None:
    """An app that came later with one request is next but one, however many another one has waiting."""
    room = room_with(("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"))
    assert list(room.in_turn()) == ["a1", "b1", "a2", "a3"]


def test_who_was_served_goes_to_the_end() -> None:
    """Otherwise the first key would always be first."""
    room = room_with(("a1", "a"), ("a2", "a"), ("b1", "b"))
    room.leave("a1", served=True)
    assert list(room.in_turn()) == ["b1", "a2"]


def test_who_gave_up_costs_its_key_no_turn() -> None:
    """It got nothing."""
    room = room_with(("a1", "a"), ("a2", "a"), ("b1", "b"))
    room.leave("a1")
    assert list(room.in_turn()) == ["a2", "b1"]


def test_a_full_room_takes_no_more_of_who_fills_it() -> None:
    """429, and come again."""
    room = room_with(*((f"a{n}", "a") for n in range(4)))
    assert room.enter("a4", model="m", key_id="a") is None
    assert "a4" not in room


def test_a_full_room_is_shared() -> None:
    """The newest request of the key that has most gives way, until shares are equal."""
    room = room_with(*((f"a{n}", "a") for n in range(4)))
    assert room.enter("b0", model="m", key_id="b") == Entered(displaced="a3")
    assert room.enter("b1", model="m", key_id="b") == Entered(displaced="a2")
    assert room.enter("b2", model="m", key_id="b") is None
    assert list(room.in_turn()) == ["a0", "b0", "a1", "b1"]


def test_no_place_at_all_is_a_refusal() -> None:
    """With 0 places nobody waits."""
    assert WaitingRoom(0).enter("1", model="m", key_id=None) is None


def test_retry_after_grows_with_the_queue_and_falls_with_the_fleet() -> None:
    """Two slots of one second each free one place every half second; twice the experts, every quarter."""
    one = [expert(latency=speed(1000, 50, slots=2))]
    assert retry_after_s(0, one) == pytest.approx(0.5)
    assert retry_after_s(9, one) == pytest.approx(5.0)
    assert retry_after_s(9, [*one, expert("agent-2", latency=speed(1000, 50, slots=2))]) == pytest.approx(2.5)


def test_retry_after_of_an_unmeasured_fleet_is_unknown() -> None:
    """Nothing is invented."""
    assert retry_after_s(3, [expert(latency=None)]) is None


def test_retry_after_has_an_end() -> None:
    """Nobody can tell what the fleet looks like in a year."""
    assert retry_after_s(10**9, [expert()]) == 120.0


def test_retry_after_is_in_whole_seconds() -> None:
    """The header knows no fractions, and 0 would mean at once."""
    assert [whole_seconds(seconds) for seconds in (0.0, 0.4, 1.0, 1.1)] == [1, 1, 1, 2]


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "leave", "serve"]), st.integers(0, 20), st.sampled_from("abc")),
        max_size=80,
    )
)
def test_the_room_is_bounded_and_everybody_is_in_turn_once(steps: list[tuple[str, int, str]]) -> None:
    """Whoever is inside is in the order exactly once; no key has two more than another that was turned away."""
    room = WaitingRoom(6)
    inside: dict[str, str] = {}
    for what, number, key in steps:
        request_id = f"{key}{number}"
        if what == "enter" and request_id not in inside:
            entered = room.enter(request_id, model="m", key_id=key)
            if entered is None:
                counts = {other: sum(owner == other for owner in inside.values()) for other in "abc"}
                assert max(counts.values()) <= counts[key] + 1
                continue
            inside[request_id] = key
            if entered.displaced:
                del inside[entered.displaced]
        elif what == "leave":
            room.leave(request_id)
            inside.pop(request_id, None)
        elif what == "serve" and len(room):
            first = next(room.in_turn())
            room.leave(first, served=True)
            del inside[first]
        assert sorted(room.in_turn()) == sorted(inside)
        assert len(room) <= 6
