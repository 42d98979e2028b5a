"""SHA-256 of files, large ones in a process of its own at the lowest priority, so that whoever answers goes first.

`python -m moe2.common.checksums PARENT FILE…` prints the SHA-256 of each file, and then that of all their bytes, a line
each. A thread of low priority would not do: it may have to wait for a processor while it holds the interpreter's lock,
and all other threads then wait with it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SMALL_BYTES = 1 << 25
"""Files of so many bytes together are read by the caller: that takes less than to start a process."""
LOWEST = 19
_PIECE_BYTES = 1 << 20
_ARGV = (sys.executable, "-m", "moe2.common.checksums")


@dataclass(frozen=True)
class Checksums:
    """SHA-256 in hexadecimal. parts: of each file. whole: of all their bytes, one after the other."""

    parts: tuple[str, ...]
    whole: str


def checksums_of(paths: Sequence[Path]) -> Checksums:
    """Reads files and returns their checksums. Blocks. Raises `OSError` where one cannot be read."""
    if sum(path.stat().st_size for path in paths) > SMALL_BYTES and (lines := _from_child(paths)) is not None:
        return Checksums(tuple(lines[:-1]), lines[-1])
    *parts, last = _lines(paths)
    return Checksums(tuple(parts), last)


def lowered(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Gives a child the lowest priority, of its reads, too, where the system lets it, and returns it."""
    # From outside: a child that began with it would hold up its parent, which waits until the program has begun.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST)
    return process


def _from_child(paths: Sequence[Path]) -> list[str] | None:
    """What the process prints; None where it cannot be started or is ended, so that somebody else has to read."""
    argv = (*_ARGV, str(os.getpid()), *(str(path.absolute()) for path in paths))
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    except OSError:
        return None
    lines = lowered(process).communicate()[0].split()
    if process.returncode == 0 and len(lines) == len(paths) + 1:
        return lines
    return None


def _lines(paths: Sequence[Path], parent: int | None = None) -> Iterator[str]:
    """Yields each file's checksum, and then that of all. parent: the process without which nobody waits for them."""
    whole = hashlib.sha256()
    for path in paths:
        own = whole if len(paths) == 1 else hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                own.update(piece)
                if own is not whole:
                    whole.update(piece)
                if parent is not None and os.getppid() != parent:
                    sys.exit(1)
        yield own.hexdigest()
    yield whole.hexdigest()


def main() -> None:
    """Prints the checksums of the files that the command line names."""
    parent, *names = sys.argv[1:]
    for line in _lines([Path(name) for name in names], int(parent)):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
