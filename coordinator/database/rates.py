"""Rates that coordinators share: one bucket for each key, which they draw from a few requests at a time.

Far from the limit a coordinator draws a small part of a minute's requests at once, near it one by one. What it has not
used after a second or two it puts back. The database's clock fills the buckets, so that coordinators' clocks do not
matter. Prices of a joule are shared here, too: each coordinator adds what it has learned, and takes over the sum.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

import msgspec
import structlog

from moe2.coordinator.database.postgresql import DatabaseError, Session
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.provisioning.price_book import PriceBook, SavedPrice, merged

HOLD_S = 2.0
"""The time for which requests that were drawn may be used."""
PUT_BACK_EVERY_S = 1.0
CHUNKS = 20
"""No more than this part of a minute's requests is drawn at once, by all coordinators together."""
PLENTY = 0.25
"""The part of a minute's requests below which they are drawn one by one."""
RETRY_S = 1.0
DRAW_TIMEOUT_S = 1.0

log = structlog.get_logger()
T = TypeVar("T")


@dataclass
class _Bucket:
    """What this coordinator holds of one key's requests."""

    per_minute: float
    held: int = 0
    until_s: float = -math.inf
    available: float = 0.0
    """What was left in the database at the last draw."""
    empty_until_s: float = -math.inf
    failed_s: float = -math.inf
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def capacity(self) -> float:
        """The most requests that may come at once."""
        return max(1.0, self.per_minute)

    def chunk(self, n_coordinators: int) -> int:
        """Returns how many requests to draw at once."""
        if self.available < PLENTY * self.capacity:
            return 1
        return max(1, int(self.capacity / (CHUNKS * n_coordinators)))


class SharedRates:
    """The requests per minute of all keys, and the prices of all average budgets. Event loop; a thread asks."""

    def __init__(
        self,
        session: Session,
        prices: PriceBook,
        *,
        n_coordinators: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._session = session
        self._prices = prices
        self._shared: dict[str, SavedPrice] = {}
        self._n_coordinators = n_coordinators
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shared-rates")

    async def take(self, principal: Principal) -> float | None:
        """Takes one request. Returns 0, the seconds until there is one, or None where the database cannot be asked."""
        per_minute, key_id = principal.requests_per_minute, principal.key_id
        if per_minute is None or key_id is None:
            return 0.0
        bucket = self._buckets.get(key_id)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[key_id] = _Bucket(per_minute)
        async with bucket.lock:
            now_s = self._clock()
            if bucket.held == 0 or now_s >= bucket.until_s:
                if now_s < bucket.empty_until_s:
                    return bucket.empty_until_s - now_s
                if now_s - bucket.failed_s < RETRY_S or not await self._draw(key_id, bucket):
                    return None
            if bucket.held == 0:
                return max(0.001, bucket.empty_until_s - self._clock())
            bucket.held -= 1
            return 0.0

    async def run(self) -> None:
        """Puts back what was not used, and shares prices, until it is cancelled."""
        while True:
            await asyncio.sleep(PUT_BACK_EVERY_S)
            try:
                for key_id, bucket in tuple(self._buckets.items()):
                    if bucket.held and self._clock() >= bucket.until_s and not bucket.lock.locked():
                        held, bucket.held = bucket.held, 0
                        await self._in_thread(self._put_back, key_id, bucket.capacity, held)
                await self._share_prices()
            except DatabaseError as error:
                log.debug("rates_not_shared", reason=str(error))

    async def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    async def _draw(self, key_id: str, bucket: _Bucket) -> bool:
        want = bucket.chunk(self._n_coordinators)
        try:
            async with asyncio.timeout(DRAW_TIMEOUT_S):
                granted, available = await self._in_thread(
                    self._take, key_id, bucket.per_minute, bucket.capacity, want + bucket.held, bucket.held
                )
        except (DatabaseError, TimeoutError) as error:
            bucket.failed_s = self._clock()
            log.warning("rate_not_drawn", key_id=key_id, reason=str(error) or "the database does not answer")
            return False
        now_s = self._clock()
        bucket.held, bucket.available, bucket.until_s = granted, available, now_s + HOLD_S
        if not granted:
            bucket.empty_until_s = now_s + max(0.0, 1.0 - available) * 60.0 / bucket.per_minute
        return True

    async def _share_prices(self) -> None:
        own = self._prices.saved().prices
        if own:
            shared = await self._in_thread(self._merge, own)
            now = self._prices.saved().prices
            # What was learned while the database was asked comes on top.
            self._prices.adopt(
                {scope: merged(own[scope], now[scope], price) for scope, price in shared.items() if scope in now}
            )
            self._shared = shared

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # --- The thread ---------------------------------------------------------------------------------------------------

    def _take(self, key_id: str, per_minute: float, capacity: float, want: int, back: int) -> tuple[int, float]:
        """Puts back some requests and takes others; returns how many were taken, and what is left."""
        values = {"key": key_id, "rate": per_minute, "capacity": capacity, "want": want, "back": back}
        with self._session.transaction() as cursor:
            cursor.execute(_TAKE, values)
            if (found := cursor.fetchone()) is None:
                cursor.execute(_OPEN, values)
                cursor.execute(_TAKE, values)
                found = cursor.fetchone()
        if found is None:
            raise DatabaseError(f"The rate of key {key_id} is gone from the database.")
        return int(found[0]), float(found[1])

    def _put_back(self, key_id: str, capacity: float, n_requests: int) -> None:
        with self._session.transaction() as cursor:
            cursor.execute(
                "UPDATE rates SET available = least(%s, available + %s) WHERE key_id = %s",
                [capacity, n_requests, key_id],
            )

    def _merge(self, own: dict[str, SavedPrice]) -> dict[str, SavedPrice]:
        """Adds what this coordinator has learned since the last time to what all have; returns the sums."""
        with self._session.transaction() as cursor:
            cursor.execute(
                "SELECT scope, record FROM prices WHERE scope = ANY(%s) ORDER BY scope FOR UPDATE", [list(own)]
            )
            found: dict[str, SavedPrice] = {}
            for scope, record in cursor.fetchall():
                try:
                    found[scope] = msgspec.convert(record, SavedPrice)
                except msgspec.ValidationError as error:
                    log.warning("price_not_understood", scope=scope, reason=str(error))
            after = {scope: merged(self._shared.get(scope), price, found.get(scope)) for scope, price in own.items()}
            cursor.executemany(
                "INSERT INTO prices (scope, record) VALUES (%s, %s::jsonb) "
                "ON CONFLICT (scope) DO UPDATE SET record = excluded.record",
                [
                    (scope, msgspec.json.encode(price).decode())
                    for scope, price in sorted(after.items())
                    if found.get(scope) != price
                ],
            )
        return after


# Statements overtake each other by moments; a clock that was further ahead would leave a bucket unfilled for years.
_TAKE = """
    UPDATE rates SET
        granted = least(%(want)s::int, floor(filled.n)::int),
        available = filled.n - least(%(want)s::int, floor(filled.n)::int),
        per_minute = %(rate)s,
        at = CASE WHEN at < statement_timestamp() + interval '1 minute' THEN greatest(at, statement_timestamp())
            ELSE statement_timestamp() END
    FROM (
        SELECT least(%(capacity)s::float8, available + %(back)s::int
            + %(rate)s::float8 / 60 * greatest(0, extract(epoch FROM statement_timestamp() - at)::float8)) AS n
        FROM rates WHERE key_id = %(key)s FOR UPDATE
    ) AS filled
    WHERE key_id = %(key)s RETURNING granted, available
"""
_OPEN = """
    INSERT INTO rates (key_id, per_minute, available, at, granted)
    VALUES (%(key)s, %(rate)s, %(capacity)s, statement_timestamp(), 0) ON CONFLICT DO NOTHING
"""
