"""What one coordinator says and all have to know: users' scores of answers, and an operator's wishes for hosts.

Each is said to the database at the next poll, and again until it comes back from there. Until then it holds here, so
that a database that is down delays it and loses nothing: scores are in this coordinator's own file, too.

A score of an answer that another coordinator gave is checked by the shared ledger, and written at once. Whoever
answered remembers the prompt; it takes the score over with the next notification, and keeps both where training reads
them. Here only the expert is known, so that the score moves this coordinator's gate, too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import time

import msgspec
import structlog

from moe2.coordinator.database.postgresql import Cursor, DatabaseUnreachableError, Session
from moe2.coordinator.gate.feedback import AlreadyScoredError, Feedback, UnknownRequestError
from moe2.coordinator.provisioning.steering import Wishes

KEEP_SAID_S = 300.0
"""The time for which a score can be said again to a database that failed over and lost its last commits."""

log = structlog.get_logger()
LOOK_EVERY_S = 0.25
PATIENCE_S = 1.5
"""The time for which an answer is looked for: its coordinator ships it within half a second, or a little more."""
TIMEOUT_S = 3.0


class Bulletin:
    """The words of all coordinators.

    own: the scores that this coordinator has kept. on_scores, on_wishes: called in the membership's thread with what
    others have said.
    """

    def __init__(
        self,
        own: Iterable[Feedback],
        *,
        on_scores: Callable[[list[Feedback]], None],
        on_wishes: Callable[[Wishes], None],
    ) -> None:
        self._lock = threading.Lock()
        self._unsaid = {score.request_id: score for score in own}
        self._said_lately: dict[str, Feedback] = {}
        self._counted = set(self._unsaid)
        self._read_upto = 0
        self._wishes: Wishes | None = None
        self._on_scores, self._on_wishes = on_scores, on_wishes

    def score(self, feedback: Feedback) -> None:
        """Tells the other coordinators of a user's score that this one has counted."""
        with self._lock:
            self._unsaid[feedback.request_id] = feedback
            self._counted.add(feedback.request_id)

    def say_now(self, cursor: Cursor, feedback: Feedback) -> bool:
        """Writes a score that this coordinator counts as soon as the transaction is committed.

        Returns False where the answer has been scored before.
        """
        with self._lock:
            was_counted = feedback.request_id in self._counted
            # Before it is written, as the notification may be faster than this thread.
            self._counted.add(feedback.request_id)
        is_new = False
        try:
            _insert(cursor, [feedback])
            is_new = cursor.rowcount == 1
        finally:
            if not is_new and not was_counted:
                with self._lock:
                    self._counted.discard(feedback.request_id)
        return is_new

    def wish(self, wishes: Wishes) -> None:
        """Says an operator's wishes, which replace those that were."""
        with self._lock:
            self._wishes = wishes

    def say_again(self) -> None:
        """Has what was said lately be said once more, and everything be read again. In the membership's thread."""
        with self._lock:
            self._unsaid = self._said_lately | self._unsaid
            self._read_upto = 0

    def write(self, cursor: Cursor) -> None:
        """Writes what has not come back yet."""
        with self._lock:
            scores, wishes = tuple(self._unsaid.values()), self._wishes
        if scores:
            _insert(cursor, scores)
        if wishes is not None:
            cursor.execute(
                "INSERT INTO wishes (record) VALUES (%s::jsonb) ON CONFLICT (only_row) DO UPDATE "
                "SET record = excluded.record",
                [_json(wishes)],
            )

    def load_scores(self, cursor: Cursor) -> None:
        """Reads the scores that are new, and hands out those of others."""
        cursor.execute("SELECT made, record FROM feedback WHERE made > %s ORDER BY made", [self._read_upto])
        others: list[Feedback] = []
        for made, record in cursor.fetchall():
            self._read_upto = made
            try:
                score = msgspec.convert(record, Feedback)
            except msgspec.ValidationError as error:
                log.error("feedback_not_understood", error=str(error))
                continue
            with self._lock:
                self._came_back(score)
                if score.request_id in self._counted or not 0 <= score.score <= 1:
                    continue
                self._counted.add(score.request_id)
            others.append(score)
        if others:
            self._on_scores(others)

    def _came_back(self, score: Feedback) -> None:
        own, oldest_unix_s = self._unsaid.pop(score.request_id, None), time() - KEEP_SAID_S
        if own is not None:
            self._said_lately[own.request_id] = own
        while self._said_lately and next(iter(self._said_lately.values())).at_unix_s < oldest_unix_s:
            del self._said_lately[next(iter(self._said_lately))]

    def load_wishes(self, cursor: Cursor) -> None:
        """Reads the wishes, and hands them out where they are not this coordinator's own latest."""
        cursor.execute("SELECT record FROM wishes")
        found = cursor.fetchone()
        if found is None:
            return
        try:
            wishes = msgspec.convert(found[0], Wishes)
        except msgspec.ValidationError as error:
            log.error("wishes_not_understood", error=str(error))
            return
        with self._lock:
            if self._wishes == wishes:
                self._wishes = None
            is_newer_here = self._wishes is not None
        if not is_newer_here:
            self._on_wishes(wishes)


def _insert(cursor: Cursor, scores: Iterable[Feedback]) -> None:
    # Numbers are given and committed in one order, so that a reader misses none.
    cursor.execute("LOCK TABLE feedback IN SHARE ROW EXCLUSIVE MODE")
    cursor.executemany(
        "INSERT INTO feedback (request_id, record) VALUES (%s, %s::jsonb) ON CONFLICT DO NOTHING",
        [(score.request_id, _json(score)) for score in scores],
    )


def _json(value: object) -> str:
    # PostgreSQL's JSON has no text with a NUL in it.
    return msgspec.json.encode(value).decode().replace("\\u0000", "\\ufffd")


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
