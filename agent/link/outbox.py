"""What waits to be sent to the coordinator, in order. PURE.

Tokens are merged into the last waiting frame: while the link is fast each step's tokens go out at once, while it is
slow many steps share one frame. Order is kept: a job's end never overtakes its tokens.
"""

from __future__ import annotations

from collections import deque

from moe2.common.link.messages import JobPieces, TokenPiece, Tokens
from moe2.common.link.session import JobMessage

# Tokens and alternatives in one frame, at about 16 bytes each: below the smallest frame limit, 64 KiB.
MAX_PIECES = 2048


class Outbox:
    """A queue of messages with a mutable tail of tokens."""

    def __init__(self) -> None:
        self._messages: deque[JobMessage] = deque()
        self._tail: dict[str, list[TokenPiece]] = {}
        self._tail_pieces = 0

    def __bool__(self) -> bool:
        return bool(self._messages or self._tail)

    def put(self, message: JobMessage) -> None:
        self._close_tail()
        self._messages.append(message)

    def put_tokens(self, jobs: tuple[JobPieces, ...]) -> None:
        for job in jobs:
            for piece in job.pieces:
                self._tail.setdefault(job.job_id, []).append(piece)
                self._tail_pieces += 1 + len(piece.alternatives)
                if self._tail_pieces >= MAX_PIECES:
                    self._close_tail()

    def take(self) -> JobMessage | None:
        """Take out the oldest message that waits to be sent; None where none does."""
        if not self._messages:
            self._close_tail()
        return self._messages.popleft() if self._messages else None

    def clear(self) -> None:
        """Forget everything: the link it was meant for is gone."""
        self._messages.clear()
        self._tail.clear()
        self._tail_pieces = 0

    def _close_tail(self) -> None:
        if self._tail:
            self._messages.append(
                Tokens(jobs=tuple(JobPieces(job_id, tuple(pieces)) for job_id, pieces in self._tail.items()))
            )
            self._tail = {}
            self._tail_pieces = 0
