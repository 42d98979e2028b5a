"""Pulls a model into the folder: looks first, checks everything that can be known, then fetches and compares."""

from __future__ import annotations

import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.engine.llama.capacity import capacity_for
from moe2.agent.engine.llama.memory import Capacity
from moe2.agent.engine.llama.parts import parts_of
from moe2.agent.models import download
from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.fit import check_architecture, check_space, memory_shortage, what_would_fit
from moe2.agent.models.library import HUB, Library, LibraryError, LibraryFile
from moe2.agent.models.source import HubSource, LocalSource, Source, SourceError, UrlSource, checked_name
from moe2.common.checksums import checksums_of
from moe2.common.errors import Moe2Error
from moe2.common.gguf import HEAD_BYTES, GgufHeader, check_whole, opened, parse_head
from moe2.common.terminal.figures import size

Progress = Callable[[int, int], None]
"""Told how many bytes of how many have come."""


@dataclass(frozen=True)
class Part:
    """A file that is to come. sha256: None where nobody tells it beforehand. place: where its source has it."""

    name: str
    size_bytes: int
    sha256: str | None
    place: str


@dataclass(frozen=True)
class Offer:
    """A model as its source tells of it, before any of it has come. origin: with the revision that it has now."""

    origin: str
    parts: tuple[Part, ...]
    header: GgufHeader

    @property
    def name(self) -> str:
        """Its name in the folder: its first file's."""
        return self.parts[0].name

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files."""
        return sum(part.size_bytes for part in self.parts)


class Supply(ABC):
    """Where an offer's bytes come from."""

    @abstractmethod
    async def look(self) -> Offer:
        """What there is. Raises `Moe2Error`."""

    @abstractmethod
    async def fetch(self, part: Part, target: Path, progress: Progress) -> None:
        """Brings one file to `target`, where an earlier attempt may have left a beginning. Raises `Moe2Error`."""


class UrlSupply(Supply):
    """A file behind an address."""

    def __init__(self, source: UrlSource) -> None:
        self._source = source

    async def look(self) -> Offer:
        source = self._source
        if len(parts_of(Path(source.name))) > 1:
            raise SourceError(
                f"{source.name} is one of several files of a model, which an address with one checksum cannot bring.",
                remedy="Pull it from the hub, or join the files with llama-gguf-split --merge.",
            )
        async with download.session() as session:
            n_bytes, head = await download.look(session, source.url, HEAD_BYTES)
        part = Part(source.name, n_bytes, source.sha256, source.url)
        return Offer(source.url, (part,), parse_head(head, source.name))

    async def fetch(self, part: Part, target: Path, progress: Progress) -> None:
        async with download.session() as session:
            await download.download(
                session, part.place, target, part.size_bytes, on_bytes=lambda done: progress(done, part.size_bytes)
            )


class LocalSupply(Supply):
    """A file of this host, with its parts beside it."""

    def __init__(self, source: LocalSource) -> None:
        self._path = source.path

    async def look(self) -> Offer:
        paths = parts_of(self._path)
        if paths[0] != self._path:
            raise SourceError(f"{self._path} is a later part of a model.", remedy=f"Name {paths[0].name}.")
        try:
            with opened(paths[0]) as file:
                header = parse_head(file.read(HEAD_BYTES), str(paths[0]))
            for path in paths:
                check_whole(path)
            parts = tuple(Part(path.name, path.stat().st_size, None, str(path)) for path in paths)
        except OSError as error:
            raise SourceError(
                f"{error.filename or self._path} cannot be read: {error.strerror}.", remedy="Check the path."
            ) from error
        return Offer(str(self._path.absolute()), parts, header)

    async def fetch(self, part: Part, target: Path, progress: Progress) -> None:
        try:
            await in_daemon_thread(partial(shutil.copyfile, part.place, target))
        except OSError as error:
            raise SourceError(f"{part.place} could not be copied: {error.strerror or error}.") from error
        progress(part.size_bytes, part.size_bytes)


class HubSupply(Supply):
    """A repository's files on the hub, all parts of a split model together."""

    def __init__(self, source: HubSource, token: str | None) -> None:
        # Here, as whoever pulls from elsewhere need not have the package.
        from moe2.agent.models import hub

        self._hub = hub
        self._source = source
        self._token = token
        self._revision = ""

    async def look(self) -> Offer:
        source = self._source
        first = PurePosixPath(source.file)
        names = [part.name for part in parts_of(Path(first.name))]
        if names[0] != first.name:
            raise SourceError(f"{first.name} is a later part of a model.", remedy=f"Name {names[0]}.")
        parts: list[Part] = []
        for name in names:
            place = str(first.with_name(name))
            revision = self._revision or source.revision
            found = await in_daemon_thread(partial(self._hub.look, source.repo, place, revision, self._token))
            if not parts:
                # All of one commit, also where somebody changes the repository meanwhile.
                self._revision = found.revision
                look = partial(self._hub.head, found, HEAD_BYTES, self._token, name=str(source))
                head = await in_daemon_thread(look)
            parts.append(Part(name, found.size_bytes, found.sha256, place))
        origin = str(HubSource(source.repo, source.file, self._revision))
        return Offer(origin, tuple(parts), parse_head(head, first.name))

    async def fetch(self, part: Part, target: Path, progress: Progress) -> None:
        folder = target.with_name(f"{target.name}{HUB}")
        # Not awaited at the end: an interrupted pull must not go on until the library has the whole file.
        repo = self._source.repo
        done = await in_daemon_thread(
            partial(self._hub.download, repo, part.place, self._revision, self._token, folder)
        )
        os.replace(done, target)
        await in_daemon_thread(partial(shutil.rmtree, folder, ignore_errors=True))
        progress(part.size_bytes, part.size_bytes)


def supply_of(source: Source, token: str | None) -> Supply:
    """Who brings a source's files. token: the hub's. Raises `Moe2Error` where a package is missing."""
    match source:
        case HubSource():
            return HubSupply(source, token)
        case UrlSource():
            return UrlSupply(source)
        case LocalSource():
            return LocalSupply(source)


class Pull:
    """One model on its way into the folder. say: gets lines for people. context_tokens: what memory is checked for."""

    def __init__(
        self,
        library: Library,
        checksums: ChecksumStore,
        supply: Supply,
        *,
        say: Callable[[str], None],
        progress: Progress,
        context_tokens: int,
        capacity: Callable[[str], Capacity] = capacity_for,
    ) -> None:
        self._library = library
        self._checksums = checksums
        self._supply = supply
        self._say = say
        self._progress = progress
        self._context_tokens = context_tokens
        self._capacity = capacity

    async def run(self) -> LibraryFile:
        """Looks, checks, fetches, compares, and enters the model. Raises `Moe2Error`; a later run goes on there."""
        offer = await self._supply.look()
        for part in offer.parts:
            checked_name(part.name)
        self._say(f"{offer.name}: {size(offer.size_bytes)}, licence {offer.header.licence or 'not named in the file'}.")
        if (known := await self._present(offer)) is not None:
            self._say("It is here already, with the same checksum.")
            return known
        await self._check(offer)
        self._library.ready()
        sums = [await self._fetch(part) for part in offer.parts]
        # All at once, so that no half of a split model is ever seen.
        for part in offer.parts:
            self._library.partial_path(part.name).replace(self._library.path(part.name))
        path = self._library.path(offer.name)
        if len(sums) == 1:
            self._checksums.remember(path, sums[0])
        sha256 = await in_daemon_thread(partial(self._checksums.sha256, path))
        entry = LibraryFile(
            name=offer.name,
            size_bytes=offer.size_bytes,
            sha256=sha256,
            origin=offer.origin,
            added_unix_s=time.time(),
            licence=offer.header.licence,
            architecture=offer.header.architecture,
        )
        self._library.add(entry)
        return entry

    async def _present(self, offer: Offer) -> LibraryFile | None:
        """The model if it is here; raises `LibraryError` where another one has its name."""
        known = self._library.find(offer.name)
        if known is None:
            return None
        expected = offer.parts[0].sha256 if len(offer.parts) == 1 else None
        same = known.sha256 == expected if expected else known.origin == offer.origin
        if same and known.size_bytes == offer.size_bytes:
            return known
        raise LibraryError(
            f"{offer.name} is here already, from {known.origin}, and is another file.",
            remedy=f"Remove it first: `moe2-agent remove {offer.name}`.",
        )

    async def _check(self, offer: Offer) -> None:
        architecture = offer.header.architecture or ""
        capacity = await in_daemon_thread(partial(self._capacity, architecture))
        check_architecture(offer.header, offer.name, capacity)
        here = sum(self._size(self._library.partial_path(part.name)) for part in offer.parts)
        check_space(
            offer.name,
            max(0, offer.size_bytes - here),
            free_bytes=self._library.free_bytes(),
            folder=str(self._library.folder),
        )
        missing = memory_shortage(offer.header, offer.size_bytes, capacity, context_tokens=self._context_tokens)
        if missing is not None:
            self._say(
                f"Memory: not enough now for {self._context_tokens} tokens of context. {missing.text} "
                f"{what_would_fit(missing, self._context_tokens)}"
            )

    async def _fetch(self, part: Part) -> str:
        target = self._library.partial_path(part.name)
        await self._supply.fetch(part, target, self._progress)
        self._library.give_to_owner(target)
        sha256 = (await in_daemon_thread(partial(checksums_of, [target]))).whole
        if part.sha256 is not None and sha256 != part.sha256:
            target.unlink(missing_ok=True)
            raise Moe2Error(
                f"{part.name} has the checksum {sha256}, not {part.sha256}; it was thrown away.",
                remedy="Pull it again; if it stays so, its source is not what it says.",
            )
        return sha256

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0
