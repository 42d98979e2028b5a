"""API keys for tests."""

from __future__ import annotations

from typing import Any

from moe2.coordinator.keys.keys import ENTROPY_BYTES, KeyOptions, KeyRecord, mint
from moe2.coordinator.keys.store import KeyFile

NOW_UNIX_S = 1_750_000_000.0


def made(seed: int = 1, **options: Any) -> tuple[KeyRecord, str]:
    """Returns a record and its key, the same for the same seed."""
    options = {"name": f"app-{seed}", **options}
    return mint(KeyOptions(**options), entropy=bytes([seed]) * ENTROPY_BYTES, now_unix_s=NOW_UNIX_S)


def add_key(file: KeyFile, seed: int = 1, **options: Any) -> tuple[KeyRecord, str]:
    """Makes a key and keeps it, as the command does."""
    record, key = made(seed, **options)
    with file.changing() as keys:
        file.write(keys.with_key(record))
    return record, key


def revoke(file: KeyFile, key_id: str) -> None:
    with file.changing() as keys:
        file.write(keys.with_revoked(key_id, NOW_UNIX_S))
