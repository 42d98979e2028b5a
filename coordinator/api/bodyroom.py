"""Memory for bodies that are on their way, so that nobody fills it by sending many slowly. PURE."""

from __future__ import annotations


class BodyRoom:
    """Shares `max_bytes` among the clients whose bodies are not whole yet.

    One that is alone may have it all. When it is full, each of n clients may still have an nth of it, so that who came
    first keeps nobody out; so n of them can hold at most 1 + 1/2 + ... + 1/n times as much.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes: dict[str, int] = {}
        self._total_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What all clients hold."""
        return self._total_bytes

    def take(self, client: str, n_bytes: int) -> bool:
        """Hold so many bytes more for a client. False, and nothing is held, if they are beyond its share."""
        held_bytes = self._held_bytes.get(client, 0) + n_bytes
        n_clients = len(self._held_bytes.keys() | {client})
        if self._total_bytes + n_bytes > self._max_bytes and held_bytes > self._max_bytes / n_clients:
            return False
        self._held_bytes[client] = held_bytes
        self._total_bytes += n_bytes
        return True

    def give_back(self, client: str, n_bytes: int) -> None:
        """The client's body is whole, or given up."""
        if not n_bytes:
            return
        self._total_bytes -= n_bytes
        self._held_bytes[client] -= n_bytes
        if not self._held_bytes[client]:
            del self._held_bytes[client]
