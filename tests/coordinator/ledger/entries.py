"""Ledger entries for tests."""

from __future__ import annotations

from typing import Any

from moe2.coordinator.ledger.entry import AttemptEntry, RequestEntry, ReservationEntry


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
