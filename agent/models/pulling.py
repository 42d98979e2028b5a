"""Pulls a model into the folder: looks first, checks everything that can be known, then fetches and compares."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.engine.llama.capacity import capacity_for
from moe2.agent.engine.llama.memory import Capacity
from moe2.agent.engine.llama.parts import parts_of
from moe2.agent.models import download
from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.fit import check_architecture, check_limit, check_space, memory_shortage, what_would_fit
from moe2.agent.models.library import Library, LibraryError, LibraryFile
from moe2.common.checksums import checksums_of
from moe2.common.errors import Moe2Error
from moe2.common.gguf import HEAD_BYTES, GgufHeader, check_whole, opened, parse_head
from moe2.common.modelsource import HubSource, LocalSource, Source, SourceError, UrlSource, checked_name
from moe2.common.terminal.figures import size

if TYPE_CHECKING:
    # The package may be missing.
    from moe2.agent.models.hub import HubFile

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
        """Returns the offered model's files and their sizes, read at the source. Raises `Moe2Error`."""

    @abstractmethod
    async def fetch(self, part: Part, target: Path, progress: Progress) -> None:
        """Brings one file to `target`, where an earlier attempt may have left a beginning. Raises `Moe2Error`."""


class UrlSupply(Supply):
    """A file behind an address. may_lead: whether it may lead to another address."""

    def __init__(self, source: UrlSource, may_lead: Callable[[str], bool]) -> None:
        self._source = source
        self._place = download.Place(source.url, str(source), may_lead=may_lead)

    async def look(self) -> Offer:
        source = self._source
        if len(parts_of(Path(source.name))) > 1:
            raise SourceError(
                f"{source.name} is one of several files of a model, which an address with one checksum cannot bring.",
                remedy="Pull it from the hub, or join the files with llama-gguf-split --merge.",
            )
        async with download.session() as session:
            n_bytes, head = await download.look(session, self._place, HEAD_BYTES)
        part = Part(source.name, n_bytes, source.sha256, source.url)
        return Offer(str(source), (part,), parse_head(head, source.name))

    async def fetch(self, part: Part, target: Path, progress: Progress) -> None:
        async with download.session() as session:
            await download.download(
                session,
                self._where,
                target,
                part.size_bytes,
                on_bytes=lambda done: progress(done, part.size_bytes),
            )

    async def _where(self) -> download.Place:
        return self._place


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
            found = await self._asked(str(first.with_name(name)), self._revision or source.revision)
            # All of one commit, also where somebody changes the repository meanwhile.
            self._revision = found.revision
            parts.append(Part(name, found.size_bytes, found.sha256, str(first.with_name(name))))
        origin = str(HubSource(source.repo, source.file, self._revision))
        async with download.session() as session:
            n_bytes, head = await download.look(session, await self._where(parts[0]), HEAD_BYTES)
        if n_bytes != parts[0].size_bytes:
            raise SourceError(
                f"{first.name} has {size(parts[0].size_bytes)} as its hub says, and {size(n_bytes)} where it is kept.",
                remedy="Pull again later; if it stays so, its hub is not what it says.",
            )
        return Offer(origin, tuple(parts), parse_head(head, first.name))

    async def fetch(self, part: Part, target: Path, progress: Progress) -> None:
        async with download.session() as session:
            await download.download(
                session,
                partial(self._where, part),
                target,
                part.size_bytes,
                on_bytes=lambda done: progress(done, part.size_bytes),
            )

    async def _where(self, part: Part) -> download.Place:
        """Where the hub keeps a file now: its addresses hold for a while only."""
        try:
            found = await self._asked(part.place, self._revision)
        except self._hub.HubAwayError as error:
            raise download.BrokenOffError(error.message, remedy=error.remedy) from error
        return download.Place(found.url, f"hf:{self._source.repo}/{part.place}", found.headers)

    async def _asked(self, place: str, revision: str | None) -> HubFile:
        return await in_daemon_thread(partial(self._hub.look, self._source.repo, place, revision, self._token))


def supply_of(source: Source, token: str | None, *, may_lead: Callable[[str], bool] = lambda _: True) -> Supply:
    """Who brings a source's files. token: the hub's. may_lead: whether an address may lead to another one.

    Raises `Moe2Error` where a package is missing.
    """
    match source:
        case HubSource():
            return HubSupply(source, token)
        case UrlSource():
            return UrlSupply(source, may_lead)
        case LocalSource():
            return LocalSupply(source)


class Pull:
    """One model on its way into the folder.

    say: gets lines for people. progress: told of all parts together. context_tokens: what memory is checked for.
    max_bytes: what the folder may hold in all, and pending_bytes of it are promised already; None for no limit.
    """

    def __init__(
        self,
        library: Library,
        checksums: ChecksumStore,
        supply: Supply,
        *,
        say: Callable[[str], None],
        progress: Progress,
        context_tokens: int,
        max_bytes: int | None = None,
        pending_bytes: int = 0,
        capacity: Callable[[str], Capacity] = capacity_for,
    ) -> None:
        self._library = library
        self._max_bytes = max_bytes
        self._pending_bytes = pending_bytes
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
        with self._library.claimed(offer.name):
            return await self._brought(offer)

    async def _brought(self, offer: Offer) -> LibraryFile:
        path = self._library.path(offer.name)
        if (stranger := self._library.stranger([part.name for part in offer.parts])) is not None:
            sha256 = offer.parts[0].sha256 if len(offer.parts) == 1 else None
            if sha256 is None or await in_daemon_thread(partial(self._checksums.sha256, path)) != sha256:
                raise LibraryError(
                    f"{stranger} is in {self._library.folder} already, and nobody has pulled it.",
                    remedy="Move it away, or choose another models_from.folder: no file of yours is written over.",
                )
            self._say("It is here already, with the same checksum.")
            return self._entered(offer, sha256)
        await self._check(offer)
        sums: list[str] = []
        here_bytes = 0
        for part in offer.parts:
            sums.append(await self._fetch(part, partial(self._told, here_bytes, offer.size_bytes)))
            here_bytes += part.size_bytes
        # All at once, so that no half of a split model is ever seen.
        for part in offer.parts:
            self._library.partial_path(part.name).replace(self._library.path(part.name))
        if len(sums) == 1:
            self._checksums.remember(path, sums[0])
        return self._entered(offer, await in_daemon_thread(partial(self._checksums.sha256, path)))

    def _entered(self, offer: Offer, sha256: str) -> LibraryFile:
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
        held = self._library.used_bytes() + self._pending_bytes
        check_limit(offer.name, offer.size_bytes, held_bytes=held, max_bytes=self._max_bytes)
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

    async def _fetch(self, part: Part, progress: Progress) -> str:
        target = self._library.partial_path(part.name)
        while True:
            is_mixed = self._size(target) > 0
            await self._supply.fetch(part, target, progress)
            self._library.give_to_owner(target)
            sha256 = (await in_daemon_thread(partial(checksums_of, [target]))).whole
            if part.sha256 in (sha256, None):
                return sha256
            target.unlink(missing_ok=True)
            if not is_mixed:
                raise Moe2Error(
                    f"{part.name} has the checksum {sha256}, not {part.sha256}; it was thrown away.",
                    remedy="Pull it again; if it stays so, its source is not what it says.",
                )
            # What an earlier pull had left may be of another file: it comes anew, once.

    def _told(self, before_bytes: int, whole_bytes: int, done_bytes: int, _: int) -> None:
        self._progress(before_bytes + done_bytes, whole_bytes)

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0
