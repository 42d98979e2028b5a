"""The folder of models that moe2 itself fills: which files are in it, where they came from, when they were last used.

The index is a file of the agent's state; the models of `[[models]]` need not be in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from moe2.agent.engine.llama.parts import parts_of
from moe2.common.errors import Moe2Error, file_remedy
from moe2.common.modelsource import checked_name
from moe2.common.statefile import locked, replace_file
from moe2.common.terminal.figures import size

INDEX = "library.json"
PARTIAL = ".partial"
"""Ends the name of a file that is not here whole."""


class LibraryError(Moe2Error):
    """The folder of models, or its index, cannot be used as wanted."""


class LibraryFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model in the folder.

    name: of its file, of the first one where it is split. size_bytes, sha256: of all its files together. origin: where
    it was pulled from. last_used_unix_s: when it was last loaded; None if never.
    """

    name: str
    size_bytes: int
    sha256: str
    origin: str
    added_unix_s: float
    licence: str | None = None
    architecture: str | None = None
    last_used_unix_s: float | None = None


class Library:
    """The folder and its index. Blocking; not for the event loop.

    owner: whose the folder is. Commands of root give what they write to the owner of the state folder.
    """

    def __init__(self, state_dir: Path, folder: Path | None = None) -> None:
        self._index = state_dir / INDEX
        self.folder = folder or state_dir / "models"

    def files(self) -> tuple[LibraryFile, ...]:
        """The models that are really there, by name. Raises `LibraryError` for an index that cannot be read."""
        return tuple(one for one in self._read().values() if self.path(one.name).exists())

    def find(self, name: str) -> LibraryFile | None:
        """The model of this name."""
        return next((one for one in self.files() if one.name == name), None)

    def find_sha256(self, sha256: str) -> LibraryFile | None:
        """A model with this checksum, whatever its name."""
        return next((one for one in self.files() if one.sha256 == sha256), None)

    def path(self, name: str) -> Path:
        """Where the file of this name is, or would be. Raises `SourceError` for a name that is a path."""
        return self.folder / checked_name(name)

    def partial_path(self, name: str) -> Path:
        """Where the file of this name is while it comes in."""
        return self.folder / f".{checked_name(name)}{PARTIAL}"

    def ready(self) -> Path:
        """Makes the folder if need be, and returns it. Raises `LibraryError`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.give_to_owner(self.folder)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        return self.folder

    def free_bytes(self) -> int:
        """What is free on the folder's disk. Raises `LibraryError`."""
        place = self.folder
        while not place.exists():
            place = place.parent
        try:
            return shutil.disk_usage(place).free
        except OSError as error:
            raise _unusable(place, error) from error

    def used_bytes(self) -> int:
        """The bytes of all models in the index."""
        return sum(one.size_bytes for one in self.files())

    def add(self, file: LibraryFile) -> None:
        """Enters a model whose files are there. Raises `LibraryError`."""
        self._change(lambda known: {**known, file.name: file})

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Within the block nobody else fetches or deletes the model. Raises `LibraryError` where somebody does so."""
        mark = self.ready() / f".{checked_name(name)}{PARTIAL}"
        try:
            with locked(mark, waits=False):
                try:
                    yield
                finally:
                    mark.with_name(f".{mark.name}.lock").unlink(missing_ok=True)
        except BlockingIOError as error:
            raise LibraryError(
                f"{name} is being fetched or deleted already.", remedy="Wait until that is done."
            ) from error
        except OSError as error:
            raise _unusable(mark, error) from error

    def stranger(self, names: Sequence[str]) -> str | None:
        """The first of these files that is in the folder and in no model of the index; None where there is none."""
        own = {part.name for one in self._read() for part in parts_of(self.path(one))}
        return next((name for name in names if name not in own and os.path.lexists(self.path(name))), None)

    def discard(self, name: str, uses: Mapping[str, Sequence[Path]]) -> str:
        """Deletes a model's files, or what has come of one that is not whole; returns in words what is gone.

        uses: the files that models are served from, by the models' names. Raises `LibraryError` for one that is in use,
        on its way, or not there.
        """
        parts = parts_of(self.path(name))
        users = sorted(
            user for user, used in uses.items() if any(_is_same(part, one) for part in parts for one in used)
        )
        if users:
            raise LibraryError(
                f"{name} is what {', '.join(users)} is served from.",
                remedy="Stop serving it first: take it out of [[models]], or `moe2-coordinator models remove`.",
            )
        with self.claimed(name):
            if name not in self._read() and (n_bytes := self._drop_partial(name)):
                return f"What had come of {name} is removed: {size(n_bytes)} are free again."
            removed = self._remove(name)
        return f"{removed.name} is removed: {size(removed.size_bytes)} are free again."

    def _remove(self, name: str) -> LibraryFile:
        found = self._read().get(name)
        if found is None:
            names = ", ".join(sorted(self._read())) or "none"
            raise LibraryError(f"There is no model {name!r} in {self.folder}.", remedy=f"There are: {names}.")
        try:
            for part in parts_of(self.path(name)):
                part.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        self._change(lambda known: {key: one for key, one in known.items() if key != name})
        return found

    def _drop_partial(self, name: str) -> int:
        n_bytes = 0
        try:
            for part in parts_of(self.path(name)):
                partial = self.partial_path(part.name)
                n_bytes += partial.stat().st_size if partial.exists() else 0
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        return n_bytes

    def used(self, path: Path, now_unix_s: float) -> None:
        """The model at this path was loaded. Nothing happens for one that is not in the index."""
        found = self._read().get(path.name) if path.parent == self.folder else None
        if found is not None:
            self.add(msgspec.structs.replace(found, last_used_unix_s=now_unix_s))

    def give_to_owner(self, path: Path) -> None:
        """Gives what root has written to the owner of the agent's state. Raises `OSError`."""
        if os.geteuid() == 0:
            owner = self._index.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _change(self, change: Callable[[dict[str, LibraryFile]], dict[str, LibraryFile]]) -> None:
        try:
            with locked(self._index):
                content = msgspec.json.format(msgspec.json.encode(change(self._read())), indent=2)
                replace_file(self._index, content, mode=0o644)
        except OSError as error:
            raise _unusable(self._index, error) from error

    def _read(self) -> dict[str, LibraryFile]:
        try:
            return msgspec.json.decode(self._index.read_bytes(), type=dict[str, LibraryFile])
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unusable(self._index, error) from error
        except msgspec.MsgspecError as error:
            raise LibraryError(
                f"{self._index} is damaged: {error}.",
                remedy="Remove it, and pull the models again; what is there is kept.",
            ) from error


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, also by links."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def _unusable(path: Path, error: OSError) -> LibraryError:
    return LibraryError(
        f"{path} cannot be used: {error.strerror or error}.",
        remedy=file_remedy(error, "Run the command as root or as the agent's user, or set models_from.folder."),
    )
