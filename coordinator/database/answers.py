"""Scores of answers that another coordinator gave: checked by the shared ledger, and written at once.

Whoever answered remembers the prompt; it takes the score over from the database with the next notification, and keeps
both where training reads them. Here only the expert is known, so that the score moves this coordinator's gate, too.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from moe2.coordinator.database.bulletin import Bulletin
from moe2.coordinator.database.postgresql import DatabaseUnreachableError, Session
from moe2.coordinator.gate.feedback import AlreadyScoredError, Feedback, UnknownRequestError

LOOK_EVERY_S = 0.25
PATIENCE_S = 1.5
"""The time for which an answer is looked for: its coordinator ships it within half a second, or a little more."""
TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Score:
    """A score that a user gave. key_id: of the key that gave it; None where no keys are required."""

    request_id: str
    score: float
    at_unix_s: float
    key_id: str | None


class SharedAnswers:
    """The answers of all coordinators, as the database knows them. Event loop; a thread asks."""

    def __init__(self, session: Session, bulletin: Bulletin) -> None:
        self._session = session
        self._bulletin = bulletin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shared-answers")

    async def take(self, score: Score) -> Feedback:
        """Keeps a score of an answer that is in the shared ledger, or comes there soon.

        Raises UnknownRequestError, also for an answer to another key, AlreadyScoredError, and `DatabaseError`.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        while True:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    found = await loop.run_in_executor(self._thread, self._take, score)
            except TimeoutError:
                raise DatabaseUnreachableError("The database does not answer.") from None
            if found is not None:
                return found
            if loop.time() >= until_s:
                raise UnknownRequestError(f"No answered request {score.request_id!r} is in the ledger.")
            await asyncio.sleep(LOOK_EVERY_S)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    def _take(self, score: Score) -> Feedback | None:
        """Writes a score; None where no such answer has been shipped. In the thread."""
        with self._session.transaction() as cursor:
            cursor.execute(_ANSWERED, [score.request_id])
            if (found := cursor.fetchone()) is None:
                return None
            key_id, expert, model = found
            if key_id != score.key_id:
                # What another key asked is private: whether there is such a request, too.
                return None
            feedback = Feedback(
                request_id=score.request_id,
                expert=expert,
                model=model,
                score=score.score,
                prompt_sha256="",
                at_unix_s=score.at_unix_s,
            )
            is_new = self._bulletin.say_now(cursor, feedback)
        if not is_new:
            raise AlreadyScoredError(f"Request {score.request_id!r} has been scored already.")
        return feedback


_ANSWERED = """
    SELECT requests.key_id, attempts.expert, attempts.model
    FROM coordinators JOIN requests ON requests.coordinator = coordinators.name AND requests.request_id = %s
    JOIN attempts USING (coordinator, request_id)
    WHERE requests.outcome = 'completed' AND attempts.outcome = 'answered' ORDER BY attempts.place LIMIT 1
"""
