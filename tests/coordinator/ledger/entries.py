"""Ledger entries for tests, and a ledger that takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

from moe2.coordinator.ledger.entry import AttemptEntry, RequestEntry, ReservationEntry
from moe2.coordinator.ledger.store import Ledger

POLL_S = 0.002


def attempt_entry(request_id: str = "req-1", **fields: Any) -> AttemptEntry:
    return AttemptEntry(
        **{
            "request_id": request_id,
            "place": 0,
            "expert": "id-1/tiny",
            "agent": "orin",
            "model": "tiny",
            "outcome": "answered",
            "prompt_tokens": 7,
            "cached_tokens": 0,
            "decoded_tokens": 10,
            "seconds": 2.0,
            "joules": 5.0,
            "quality": "measured_counter",
            "predicted_j_p50": 4.0,
            "predicted_j_p95": 8.0,
            "predicted_s_p50": 1.0,
            "predicted_s_p95": 3.0,
            **fields,
        }
    )


def request_entry(request_id: str = "req-1", *attempts: AttemptEntry, **fields: Any) -> RequestEntry:
    return RequestEntry(
        **{
            "request_id": request_id,
            "at_unix_s": 1000.0,
            "day": "1970-01-01",
            "key_id": "k1",
            "key_name": "app",
            "mode": "route",
            "category": "default",
            "model": "moe2",
            "outcome": "completed",
            "code": "stop",
            "prompt_tokens": 7,
            "cached_tokens": 0,
            "decoded_tokens": 10,
            "ttft_s": 0.5,
            "total_s": 2.5,
            "joules": 5.0,
            "quality": "measured_counter",
            "charged_j": 5.0,
            "charged_tokens": 17,
            "attempts": attempts or (attempt_entry(request_id),),
            **fields,
        }
    )


def reservation(request_id: str = "req-1", **fields: Any) -> ReservationEntry:
    return ReservationEntry(
        **{
            "request_id": request_id,
            "at_unix_s": 1000.0,
            "day": "1970-01-01",
            "key_id": "k1",
            "key_name": "app",
            "model": "moe2",
            "energy_j": 8.0,
            "tokens": 100,
            **fields,
        }
    )


@asynccontextmanager
async def running(
    path: Path, *, retention_days: int = 36_500, clock: Callable[[], float] = time
) -> AsyncIterator[Ledger]:
    ledger = Ledger(path, retention_days=retention_days, clock=clock)
    async with ledger.running():
        yield ledger


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(POLL_S)
