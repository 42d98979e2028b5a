"""What is kept of conversations that were answered, and for how long."""

from __future__ import annotations

import numpy as np

from moe2.agent.engine.decoding.shelf import Shelf

MIB = 2**20


def _shelf(*, most_bytes: int = 10, cuts_anywhere: bool = True, free_bytes: int | None = None) -> Shelf:
    return Shelf(most_bytes=most_bytes, cuts_anywhere=cuts_anywhere, free_bytes=lambda: free_bytes)


def _put(shelf: Shelf, *tokens: int) -> None:
    shelf.put(list(tokens), np.array(tokens, np.uint8))


def _found(shelf: Shelf, *tokens: int, beyond: int = 0) -> tuple[list[int], int] | None:
    found = shelf.find(list(tokens), beyond=beyond, limit=len(tokens) - 1)
    return None if found is None else (found[0].state.tolist(), found[1])


def test_the_longest_common_beginning_is_found() -> None:
    """Of several states the one that saves most."""
    shelf = _shelf()
    _put(shelf, 1, 2, 8)
    _put(shelf, 1, 2, 3, 9)
    assert _found(shelf, 1, 2, 3, 4) == ([1, 2, 3, 9], 3)


def test_the_last_token_is_never_brought_back() -> None:
    """Its logits are needed."""
    shelf = _shelf()
    _put(shelf, 1, 2, 3)
    assert _found(shelf, 1, 2, 3) == ([1, 2, 3], 2)


def test_what_the_cache_holds_as_well_is_not_brought_back() -> None:
    """A copy that saves nothing costs time."""
    shelf = _shelf()
    _put(shelf, 1, 2, 3)
    assert _found(shelf, 1, 2, 3, 4, beyond=3) is None
    assert _found(_shelf(), 1, 2) is None


def test_few_tokens_are_not_worth_a_long_copy() -> None:
    """One token of a hundred is decoded faster than the hundred are copied."""
    shelf = _shelf(most_bytes=100)
    _put(shelf, *range(100))
    assert _found(shelf, 0, 77, 77) is None
    assert _found(shelf, 0, 1, 2, 3, 77) is not None


def test_the_least_recently_used_state_goes_first() -> None:
    """A state that was brought back counts as used."""
    shelf = _shelf(most_bytes=6)
    _put(shelf, 1, 2)
    _put(shelf, 3, 4)
    _put(shelf, 5, 6)
    assert _found(shelf, 1, 2, 9) is not None
    _put(shelf, 7, 8)
    assert shelf.holds([1, 2])
    assert not shelf.holds([3, 4])
    assert shelf.held_bytes == 6


def test_a_longer_conversation_replaces_its_own_beginning() -> None:
    """What it begins with can be cut from it."""
    shelf = _shelf()
    _put(shelf, 1, 2)
    _put(shelf, 1, 2, 3)
    assert shelf.held_bytes == 3
    assert shelf.holds([1, 2])


def test_a_state_that_cannot_be_cut_is_brought_back_whole_or_not_at_all() -> None:
    """So a beginning stays beside what goes on from it."""
    shelf = _shelf(cuts_anywhere=False)
    _put(shelf, 1, 2)
    _put(shelf, 1, 2, 3)
    assert shelf.held_bytes == 5
    assert _found(shelf, 1, 2, 9) == ([1, 2], 2)
    assert _found(shelf, 1, 9) is None


def test_a_state_larger_than_the_shelf_has_no_room() -> None:
    """Nothing else is thrown away for it."""
    shelf = _shelf(most_bytes=10)
    assert shelf.has_room(10)
    assert not shelf.has_room(11)
    assert not _shelf(most_bytes=0).has_room(1)


def test_the_shelf_leaves_memory_to_others() -> None:
    """A host that is short of memory gets no fuller; what makes way counts as free."""
    assert not _shelf(most_bytes=MIB, free_bytes=512 * MIB).has_room(1)
    assert _shelf(most_bytes=MIB, free_bytes=513 * MIB).has_room(MIB)
    full = _shelf(most_bytes=4, free_bytes=512 * MIB)
    _put(full, 1, 2, 3, 4)
    assert full.has_room(4)
