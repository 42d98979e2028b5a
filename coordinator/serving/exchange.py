"""What passes from the service to the one HTTP handler that waits for it: tokens as they come, then the outcome."""

from __future__ import annotations

import asyncio

from moe2.common.link.messages import TokenPiece
from moe2.coordinator.ledger.store import Recorded
from moe2.coordinator.serving.effects import Outcome
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import Receipt, receipt_of


class Exchange:
    """One request's mailbox: one writer (the service), one reader (the handler).

    news: set when there is something to `take`. Requests that are read together have one in common. None for a reader
    that waits for the end: it is not woken before.
    """

    def __init__(self, life: Lifecycle, news: asyncio.Event | None = None) -> None:
        self.life = life
        self._final: Receipt | None = None
        self._pieces: list[TokenPiece] = []
        self.vectors: list[bytes] = []
        """The vectors that have come so far, of a request for these."""
        self._remarks: list[str] = []
        self._outcome: Outcome | None = None
        self.retry_after_s: float | None = None
        """When a request that failed should be sent again; None where nobody can say."""
        self._news = news
        self._waits_for_end: asyncio.Future[None] | None = None
        self.recorded: Recorded | None = None
        """Done once the request's latest entry in the ledger would survive a crash; None before the first entry."""

    @property
    def receipt(self) -> Receipt:
        """The final receipt once everything is accounted, and what is known so far before."""
        return self._final or receipt_of(self.life)

    def settle(self, receipt: Receipt) -> None:
        """Take the final receipt: everything is accounted."""
        self._final = receipt

    def deliver(self, pieces: tuple[TokenPiece, ...]) -> None:
        """Hand a part of the answer to the handler."""
        self._pieces.extend(pieces)
        if self._news is not None:
            self._news.set()

    def remark(self, text: str) -> None:
        """Tell the handler how far the request is; it may leave that out."""
        self._remarks.append(text)
        if self._news is not None:
            self._news.set()

    def remarks(self) -> list[str]:
        """What was remarked since the last call."""
        remarks, self._remarks = self._remarks, []
        return remarks

    def retract(self) -> None:
        """Throw away what was delivered. Only for a reader who waits for the end with `receive_all`."""
        self._pieces.clear()
        self.vectors.clear()

    def conclude(self, outcome: Outcome, *, retry_after_s: float | None = None) -> None:
        """Tell the handler the outcome. retry_after_s: when a request that failed should be sent again."""
        self._outcome, self.retry_after_s = outcome, retry_after_s
        if self._waits_for_end is not None and not self._waits_for_end.done():
            self._waits_for_end.set_result(None)
        if self._news is not None:
            self._news.set()

    def take(self) -> tuple[list[TokenPiece], Outcome | None]:
        """Return everything that has come since the last call, and the outcome once there is one, without waiting."""
        pieces, self._pieces = self._pieces, []
        return pieces, self._outcome

    @property
    def is_waiting(self) -> bool:
        """Whether the request waits: until an expert has room, or behind others in the queue of one."""
        leading = self.life.leading
        behind = leading is not None and leading.member.prediction.shape.queued_ahead is not None
        return self.life.wait is not None or behind

    async def until_recorded(self) -> None:
        """Wait until the outcome would survive the coordinator's death. A client must not learn of the end before."""
        if self.recorded is not None:
            await self.recorded

    async def receive_all(self) -> tuple[list[TokenPiece], Outcome]:
        """Wait for the end. Returns the whole answer and the outcome."""
        while self._outcome is None:
            self._waits_for_end = asyncio.get_running_loop().create_future()
            await self._waits_for_end
        return self._pieces, self._outcome
