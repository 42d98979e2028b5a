"""The responses that are kept for `previous_response_id`, in memory and within a bound. PURE."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from moe2.coordinator.http.body.responses import Item

MAX_RESPONSES = 4096
MAX_BYTES = 64 * 2**20
MAX_TURNS = 1000
"""The longest chain of responses that a conversation is put together from."""


@dataclass(frozen=True)
class KeptResponse:
    """A response with all that a next turn needs of it.

    owner: id of the key that it belongs to; None where no keys are asked for. previous_id: the response before it.
    input: its own new items, without references. output: the same items as in `body`, by their ids. body: the response
    as it was answered. n_bytes: what it takes in memory, about.
    """

    id: str
    owner: str | None
    previous_id: str | None
    input: tuple[Item, ...]
    output: dict[str, Item]
    body: dict[str, Any]
    n_bytes: int


class ResponseMemory:
    """Responses by id; the least recently used ones are forgotten where there are too many, or too large ones.

    The methods that return something may be called in another thread than those that change something.
    """

    def __init__(self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, KeptResponse] = OrderedDict()
        self._by_item: dict[str, str] = {}
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """Bytes that all responses together take, about."""
        return self._n_bytes

    def put(self, response: KeptResponse) -> None:
        """Keeps a response, and forgets the least recently used ones that there is no room for any more."""
        self._kept[response.id] = response
        self._n_bytes += response.n_bytes
        self._by_item.update(dict.fromkeys(response.output, response.id))
        while self._n_bytes > self._max_bytes or len(self._kept) > self._max_responses:
            self._forget(next(iter(self._kept)))

    def get(self, response_id: str, owner: str | None) -> KeptResponse | None:
        """Returns a response of this owner's; None where there is none, or it has been forgotten."""
        found = self._kept.get(response_id)
        return found if found is not None and found.owner == owner else None

    def delete(self, response_id: str, owner: str | None) -> bool:
        """Forgets a response of this owner's. Returns False where there is none."""
        if self.get(response_id, owner) is None:
            return False
        self._forget(response_id)
        return True

    def item(self, item_id: str, owner: str | None) -> Item | None:
        """Returns an item of the output of one of this owner's responses; None where none is kept."""
        response = self.get(self._by_item.get(item_id, ""), owner)
        return None if response is None else response.output[item_id]

    def conversation(self, response_id: str, owner: str | None) -> list[Item] | None:
        """Returns all items up to and including a response, oldest first; None where a part of them is not kept.

        The whole conversation counts as used.
        """
        turns = list(self._back_from(response_id, owner))
        if not turns or turns[-1].previous_id is not None:
            return None
        for turn in reversed(turns):
            # A body is read in a thread, while the event loop may forget this turn.
            with suppress(KeyError):
                self._kept.move_to_end(turn.id)
        return [item for turn in reversed(turns) for item in (*turn.input, *turn.output.values())]

    def _back_from(self, response_id: str, owner: str | None) -> Iterator[KeptResponse]:
        next_id: str | None = response_id
        for _ in range(MAX_TURNS):
            turn = None if next_id is None else self.get(next_id, owner)
            if turn is None:
                return
            yield turn
            next_id = turn.previous_id

    def _forget(self, response_id: str) -> None:
        response = self._kept.pop(response_id)
        self._n_bytes -= response.n_bytes
        for item_id in response.output:
            self._by_item.pop(item_id, None)
