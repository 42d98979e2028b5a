"""The model files of this host and their checksums: computed in the background, remembered until a file changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import structlog

from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.engine.llama.parts import parts_of
from moe2.common.checksums import checksums_of
from moe2.common.statefile import replace_file


class KnownChecksum(msgspec.Struct, frozen=True, kw_only=True):
    """A model's SHA-256, valid while its files have this size together, and these latest times.

    ctime_ns: of the latest change, which no program can set back; 0 in files of earlier releases.
    """

    size_bytes: int
    mtime_ns: int
    sha256: str
    ctime_ns: int = 0


class ChecksumStore:
    """What is known of files, by their path. Blocking; not for the event loop."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "checksums.json"

    def sha256(self, path: Path) -> str:
        """The file's SHA-256 in hexadecimal; of a split model, that of all its parts' bytes, one after the other.

        Raises `OSError` where a file cannot be read.
        """
        path = path.absolute()
        parts = parts_of(path)
        now = _facts_of(parts)
        if (known := self._valid(path, now)) is not None:
            return known
        # Stored under what the file was before reading: had it changed meanwhile, the next look computes it anew.
        sha256 = checksums_of(parts).whole
        self._keep(path, now, sha256)
        return sha256

    def known(self, path: Path) -> str | None:
        """The SHA-256 if it is known and the file has not changed since; reads no file. Raises `OSError`."""
        path = path.absolute()
        return self._valid(path, _facts_of(parts_of(path)))

    def remember(self, path: Path, sha256: str) -> None:
        """Keeps the checksum of a file that was just written and checked. Raises `OSError`."""
        path = path.absolute()
        self._keep(path, _facts_of(parts_of(path)), sha256)

    def _valid(self, path: Path, now: tuple[int, int, int]) -> str | None:
        found = self._load().get(str(path))
        return found.sha256 if found and (found.size_bytes, found.mtime_ns, found.ctime_ns) == now else None

    def _keep(self, path: Path, now: tuple[int, int, int], sha256: str) -> None:
        size_bytes, mtime_ns, ctime_ns = now
        entry = KnownChecksum(size_bytes=size_bytes, mtime_ns=mtime_ns, ctime_ns=ctime_ns, sha256=sha256)
        self._store({**self._load(), str(path): entry})

    def _load(self) -> dict[str, KnownChecksum]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, KnownChecksum])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _store(self, known: dict[str, KnownChecksum]) -> None:
        # It only saves work: without it, the next start computes the checksum again.
        with suppress(OSError):
            replace_file(self._path, msgspec.json.format(msgspec.json.encode(known), indent=2), mode=0o644)


def _facts_of(parts: Sequence[Path]) -> tuple[int, int, int]:
    """(size, latest modification, latest change) of all parts together. Raises `OSError`."""
    facts = [part.stat() for part in parts]
    return (
        sum(each.st_size for each in facts),
        max(each.st_mtime_ns for each in facts),
        max(each.st_ctime_ns for each in facts),
    )


log = structlog.get_logger()


class ModelFiles:
    """The files of this agent's models.

    paths: by the model's name. on_known: gets a model's name and its file's SHA-256, on the event loop.
    """

    def __init__(
        self, paths: Mapping[str, Path], store: ChecksumStore, *, on_known: Callable[[str, str], None]
    ) -> None:
        self._paths = dict(paths)
        self._store = store
        self._on_known = on_known
        self._unknown: asyncio.Queue[str] = asyncio.Queue()
        for model in paths:
            self.look(model)

    def follow(self, model: str, path: Path) -> None:
        """The model is served from this file from now on."""
        self._paths[model] = path
        self.look(model)

    def look(self, model: str) -> None:
        """The model's file may have changed."""
        self._unknown.put_nowait(model)

    async def run(self) -> None:
        """Has the files hashed, one at a time."""
        while True:
            model = await self._unknown.get()
            path = self._paths[model]
            try:
                sha256 = await in_daemon_thread(partial(self._store.sha256, path))
            except OSError as error:
                log.warning("checksum_failed", model=model, detail=str(error))
            else:
                if self._paths[model] == path:
                    self._on_known(model, sha256)
