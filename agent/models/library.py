"""The folder of models that moe2 itself fills: which files are in it, where they came from, when they were last used.

The index is a file of the agent's state; the models of `[[models]]` need not be in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from moe2.agent.engine.llama.parts import parts_of
from moe2.agent.models.source import checked_name
from moe2.common.errors import Moe2Error, file_remedy
from moe2.common.statefile import locked, replace_file

INDEX = "library.json"
PARTIAL = ".partial"
"""Ends the name of a file that is not here whole."""
HUB = ".hub"
"""Ends the name of the folder, beside such a file, in which the hub's library keeps what has come."""


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

    def remove(self, name: str) -> LibraryFile:
        """Deletes a model's files and forgets it. Raises `LibraryError`."""
        checked_name(name)
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

    def drop_partial(self, name: str) -> int:
        """Deletes what has come of a model that is not here whole; returns how many bytes. Raises `LibraryError`."""
        n_bytes = 0
        try:
            for part in parts_of(self.path(name)):
                partial = self.partial_path(part.name)
                hub = partial.with_name(f"{partial.name}{HUB}")
                for file in (partial, *(one for one in hub.rglob("*") if one.is_file())):
                    n_bytes += file.stat().st_size if file.exists() else 0
                    file.unlink(missing_ok=True)
                shutil.rmtree(hub, ignore_errors=True)
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


def _unusable(path: Path, error: OSError) -> LibraryError:
    return LibraryError(
        f"{path} cannot be used: {error.strerror or error}.",
        remedy=file_remedy(error, "Run the command as root or as the agent's user, or set models_from.folder."),
    )
