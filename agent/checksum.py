"""Checksums of model files, computed once: remembered in the state directory until the file changes."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import msgspec

from moe2.common.statefile import replace_file

_CHUNK_BYTES = 1 << 20


class KnownChecksum(msgspec.Struct, frozen=True, kw_only=True):
    """A file's SHA-256, valid while it has this size and modification time."""

    size_bytes: int
    mtime_ns: int
    sha256: str


class ChecksumStore:
    """What is known of files, by their path. Blocking; not for the event loop."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "checksums.json"

    def sha256(self, path: Path) -> str:
        """The file's SHA-256 in hexadecimal. Raises `OSError` where the file cannot be read."""
        path = path.absolute()
        facts = path.stat()
        known = self._load()
        found = known.get(str(path))
        if found is not None and (found.size_bytes, found.mtime_ns) == (facts.st_size, facts.st_mtime_ns):
            return found.sha256
        sha256 = _sha256_of(path)
        entry = KnownChecksum(size_bytes=facts.st_size, mtime_ns=facts.st_mtime_ns, sha256=sha256)
        # Stored under what the file was before reading: had it changed meanwhile, the next look computes it anew.
        self._store({**known, str(path): entry})
        return sha256

    def _load(self) -> dict[str, KnownChecksum]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, KnownChecksum])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _store(self, known: dict[str, KnownChecksum]) -> None:
        # It only saves work: without it, the next start computes the checksum again.
        with suppress(OSError):
            replace_file(self._path, msgspec.json.format(msgspec.json.encode(known), indent=2), mode=0o644)


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
