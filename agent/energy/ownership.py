"""Who measures a device: one agent on a host, or each of two would report all of its joules.

An owner holds a lock (flock(2)) on a file named after the device, which the kernel lets go when the process ends. The
files lie in `/run/moe2-devices`, which install.sh makes, and else in folders that every user may write to. All that can
be opened are locked, so that a service and an ordinary user's agent see each other, whoever came first; to lock a file
it is enough to be allowed to read it. A container has a `/run` of its own: mount `/run/moe2-devices` into it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from contextlib import suppress
from pathlib import Path

FOLDER = "run/moe2-devices"
_FOLDERS = (FOLDER, "run/lock", "tmp")
_MAX_NOTE_BYTES = 4096


class DeviceLocks:
    """The devices that this agent owns, from `claim` until `release`.

    root: of the file system that the sensors are read from. agent_name: told to the agent that comes second.
    """

    def __init__(self, root: Path, agent_name: str) -> None:
        self._root = root
        self._agent_name = agent_name
        self._held: dict[str, list[int]] = {}

    def claim(self, device: str) -> str | None:
        """Own the device from now on; return who does already, in words, or None where it is ours.

        Where no folder can be used nobody can be kept out, and the device is ours.
        """
        if device in self._held:
            return None
        return self._claim(device, may_make=True)

    def _claim(self, device: str, *, may_make: bool) -> str | None:
        held: list[int] = []
        for path in self._files(device, may_make=may_make):
            descriptor = _opened(path, may_make=may_make)
            if descriptor is None:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                owner = _owner(descriptor)
                for one in (descriptor, *held):
                    os.close(one)
                return owner
            held.append(descriptor)
        self._held[device] = held
        if not may_make:
            return None
        note = json.dumps({"agent": self._agent_name, "pid": os.getpid()}).encode()
        for descriptor in held:
            # A file of another user can be locked and not written to.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, note, 0)
        return None

    def holds(self, device: str) -> bool:
        """Whether the device is ours, and others are kept out."""
        return bool(self._held.get(device))

    def release(self) -> None:
        """Give up the locks of all devices, so that another agent can own them."""
        held, self._held = self._held, {}
        for descriptors in held.values():
            for descriptor in descriptors:
                os.close(descriptor)

    def owner(self, device: str) -> str | None:
        """Return who owns the device, in words; None where it is free or ours. Takes and leaves nothing."""
        if device in self._held:
            return None
        owner = self._claim(device, may_make=False)
        if owner is None:
            for descriptor in self._held.pop(device):
                os.close(descriptor)
        return owner

    def _files(self, device: str, *, may_make: bool) -> list[Path]:
        name = "moe2-" + re.sub(r"[^A-Za-z0-9._-]", "-", device)
        shared = self._root / FOLDER
        if may_make:
            with suppress(OSError):
                shared.mkdir()
                # Whoever may write to /run makes it for all, as tmpfiles.d would have: sticky, like /tmp.
                shared.chmod(0o1777)
        return [self._root / folder / f"{name}.lock" for folder in _FOLDERS if (self._root / folder).is_dir()]


def _opened(path: Path, *, may_make: bool) -> int | None:
    """Open a lock file, or make it where `may_make`; None where that is not allowed.

    A link is not followed: others may write to the folder, too.
    """
    making = (os.O_RDWR | os.O_CREAT | os.O_EXCL,) if may_make else ()
    for flags in (os.O_RDWR, os.O_RDONLY, *making):
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError:
            continue
        if flags & os.O_CREAT:
            # Whatever the umask: who cannot read it could not see the lock.
            with suppress(OSError):
                os.fchmod(descriptor, 0o644)
        return descriptor
    return None


def _owner(descriptor: int) -> str:
    """Return who holds the lock, as far as the file's note and the kernel's table tell."""
    pid = _locking_pid(os.fstat(descriptor).st_ino)
    try:
        note = json.loads(os.pread(descriptor, _MAX_NOTE_BYTES, 0))
        agent, noted_pid = str(note["agent"]), int(note["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process" if pid is None else f"process {pid}"
    if pid is not None and pid != noted_pid:
        return f"process {pid}"
    return f"the agent {agent[:128]} (process {noted_pid})"


def _locking_pid(inode: int) -> int | None:
    """Return the process that holds a flock on this inode, from /proc/locks; None where that does not tell."""
    try:
        table = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^\d+: FLOCK\s+\S+\s+\S+\s+(\d+) [0-9a-f]+:[0-9a-f]+:{inode} ", table, re.MULTILINE)
    return int(found[1]) or None if found else None
