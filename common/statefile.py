"""State files on disk: replaced whole, appended whole, changed by one process at a time, watched for changes.

A reader sees the former content or the new one, also after a crash, a full disk or a power failure. What is written
belongs to the owner of its folder, so that what root's commands write is the daemon's. Links are not followed where
something is written: the daemon's user could otherwise lead root's command to any file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")

_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
_TRIED_BYTES = 16_384
"""What fits nowhere but in a block of its own."""


@dataclass(frozen=True)
class Stamp:
    """Changes whenever a file is replaced or written, however coarse the clock of its file system is."""

    inode: int
    modified_ns: int
    changed_ns: int
    size_bytes: int


def stamp_of(path: Path, *, follow_links: bool = False) -> Stamp | None:
    """The file's stamp; None where there is no file. One stat(2). Raises OSError."""
    try:
        facts = path.stat(follow_symlinks=follow_links)
    except FileNotFoundError:
        return None
    return Stamp(facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size)


def read_plain(path: Path) -> bytes:
    """The content of a plain file. Raises OSError, also for a link, a folder or a device in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def read_json(path: Path, kind: type[T]) -> tuple[T | None, str | None]:
    """(what a JSON file holds, why it cannot be used); both None where there is no file. kind: its type for msgspec."""
    try:
        return msgspec.json.decode(read_plain(path), type=kind), None
    except FileNotFoundError:
        return None, None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, str(error)


def write_json(path: Path, content: object) -> str | None:
    """Replaces a JSON file, as `replace_file` does. Returns why it could not; None where it has."""
    try:
        replace_file(path, msgspec.json.encode(content) + b"\n")
    except OSError as error:
        return error.strerror or str(error)
    return None


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put `content` in the file's place; its folder is made if need be. Raises OSError, and leaves the former file.

    mode: of the file, less the umask; by default only its owner reads it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _draft(path, content, mode) as draft:
        os.replace(draft, path)
        _sync_folder(path.parent)


def write_fault(folder: Path) -> OSError | None:
    """Returns why no file can be written into the folder now; None where one can. What is tried does not stay.

    It is not synchronized: the disk need not be woken to know that it is full.
    """
    draft = folder / f".tried.{secrets.token_hex(6)}.draft"
    try:
        try:
            with draft.open("xb") as file:
                file.write(bytes(_TRIED_BYTES))
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def create_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make the file with `content`, as `replace_file` does. Raises FileExistsError if it is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _draft(path, content, mode) as draft:
        os.link(draft, path)
        _sync_folder(path.parent)


def append_line(path: Path, line: bytes, *, mode: int = 0o600) -> None:
    """Add a line, given without its end, to the file; the file and its folder are made if need be.

    Raises OSError if the line cannot be added whole, and takes back what was written of it. A line before it that a
    crash cut off is ended first, so that it costs only itself. The line has reached the file system, which may lose it
    in a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_or_make(path, os.O_RDWR | os.O_APPEND, mode)
    try:
        # Whoever takes back a piece of a line must not take back another process's line with it.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size_bytes = os.fstat(descriptor).st_size
        is_cut_off = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
        try:
            _write_all(descriptor, b"\n" * is_cut_off + line + b"\n")
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, size_bytes)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, waits: bool = True) -> Iterator[None]:
    """Hold the file's lock, a file beside it, so that nobody else who takes it changes the file. Raises OSError.

    What killed processes have left beside the file is cleared away. waits: for whoever else holds the lock; False
    raises BlockingIOError then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_or_make(path.with_name(f".{path.name}.lock"), os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        for entry in os.scandir(path.parent):
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(".draft"):
                os.unlink(entry)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _draft(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """A file beside `path` that holds `content` on disk already; gone afterwards, unless it was renamed."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            _give_to_owner(descriptor, path.parent)
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _open_or_make(path: Path, flags: int, mode: int) -> int:
    """A descriptor of the file, which belongs to the folder's owner if it was made here.

    One that was there already is not given away: it could be another name of somebody's file.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return os.open(path, flags)
    _give_to_owner(descriptor, path.parent)
    return descriptor


def _give_to_owner(descriptor: int, folder: Path) -> None:
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _write_all(descriptor: int, content: bytes) -> None:
    """A write may take only a part, such as what still fits on the disk; the next one then says why."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    """Without it, a power failure may bring back the former name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems keep no folder that could be synchronized.
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
