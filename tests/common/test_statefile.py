"""Files that hold state: whole, locked, watched."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe2.common.statefile import append_line, create_file, locked, read_plain, replace_file, stamp_of, write_fault
from tests.fakes.fulldisk import room_for_bytes

Write = Callable[[Path, bytes], None]
WRITERS = pytest.mark.parametrize("write", [replace_file, create_file, append_line])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


# --- Replacing --------------------------------------------------------------------------------------------------------


def test_a_replaced_file_holds_the_new_content(path: Path) -> None:
    """Nothing else is left in the folder."""
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_an_open_reader_keeps_the_former_content(path: Path) -> None:
    """A replaced file is another file under the same name."""
    replace_file(path, b"one")
    with path.open("rb") as reader:
        replace_file(path, b"another")
        assert reader.read() == b"one"


def test_a_full_disk_leaves_the_former_content(path: Path) -> None:
    """The failure is told, and no half-written draft stays."""
    replace_file(path, b"one")
    with room_for_bytes(10), pytest.raises(OSError, match="too large") as raised:
        replace_file(path, b"x" * 11)
    assert raised.value.errno == errno.EFBIG
    assert path.read_bytes() == b"one"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failing_step_leaves_the_former_content(path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of them it is."""
    replace_file(path, b"one")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("write", "name_it"), [(replace_file, "replace"), (create_file, "link")])
def test_the_content_is_on_disk_before_it_has_the_name(
    path: Path, write: Write, name_it: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure after the renaming would otherwise leave an empty file; the folder keeps the new name."""
    steps: list[str] = []

    def recorded(name: str) -> None:
        real = getattr(os, name)

        def record(*arguments: Any) -> object:
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            steps.append("fsync of the folder" if is_folder else name)
            return real(*arguments)

        monkeypatch.setattr(os, name, record)

    for name in ("write", "fsync", name_it):
        recorded(name)
    write(path, b"content")
    assert steps == ["write", "fsync", name_it, "fsync of the folder"]


def test_a_folder_that_cannot_be_synchronized_is_no_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems refuse it; other errors of it are told."""
    for number, told in ((errno.EINVAL, False), (errno.EIO, True)):
        real = os.fsync

        def refuse(descriptor: int, number: int = number, real: Callable[[int], None] = real) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, "refused")
            real(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", refuse)
            if told:
                with pytest.raises(OSError, match="refused"):
                    replace_file(path, b"one")
            else:
                replace_file(path, b"one")


_WRITER = """
import sys
from pathlib import Path
from moe2.common.statefile import replace_file
number = 0
while True:
    replace_file(Path(sys.argv[1]), b"%d" % (number % 10) * 300_000)
    print(number, flush=True)
    number += 1
"""


def test_a_killed_writer_leaves_whole_content(path: Path) -> None:
    """The former one or the new one; whoever takes the lock next clears its draft away."""
    for written in range(1, 6):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(written):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = path.read_bytes()
        assert content == content[:1] * 300_000
    with locked(path):
        assert sorted(entry.name for entry in path.parent.iterdir()) == [".state.json.lock", "state.json"]


# --- Making -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_not_made_again(path: Path) -> None:
    """The second of two that make it at once is told so, and leaves nothing."""
    create_file(path, b"first")
    with pytest.raises(FileExistsError):
        create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


@WRITERS
def test_only_the_owner_reads_it_unless_told_otherwise(tmp_path: Path, write: Callable[..., None]) -> None:
    """The mode is kept whatever the umask is, and the umask takes away from a wider one."""
    before = os.umask(0)
    try:
        write(tmp_path / "private", b"x")
        os.umask(0o027)
        write(tmp_path / "shared", b"x", mode=0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640


@WRITERS
def test_the_folder_is_made(tmp_path: Path, write: Write) -> None:
    """A first start finds none."""
    write(tmp_path / "a" / "b" / "state", b"x")
    assert (tmp_path / "a" / "b" / "state").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@WRITERS
def test_what_root_writes_belongs_to_the_owner_of_the_folder(path: Path, write: Write) -> None:
    """The daemon has to read what an administrator's command wrote, and to take the lock that it took."""
    os.chown(path.parent, 12345, 12346)
    with locked(path):
        write(path, b"x")
    assert {(entry.stat().st_uid, entry.stat().st_gid) for entry in path.parent.iterdir()} == {(12345, 12346)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_does_not_give_away_a_file_that_was_there(tmp_path: Path) -> None:
    """The daemon's user could have put another name of somebody's file in the place of a log or a lock."""
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, 12345, 12346)
    for name in ("log", ".log.lock"):
        (tmp_path / name).touch()
        os.link(tmp_path / name, folder / name)
    with locked(folder / "log"):
        append_line(folder / "log", b"line")
    assert {(tmp_path / name).stat().st_uid for name in ("log", ".log.lock")} == {0}


# --- Appending --------------------------------------------------------------------------------------------------------


def test_lines_are_appended(path: Path) -> None:
    """Each with its end."""
    append_line(path, b"one")
    append_line(path, b"two")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_line_that_does_not_fit_is_taken_back_and_told(path: Path) -> None:
    """A full disk takes a piece of a line without an error: the system writes as much as it can."""
    append_line(path, b"one")
    with room_for_bytes(8), pytest.raises(OSError, match="too large"):
        append_line(path, b"another")
    assert path.read_bytes() == b"one\n"
    append_line(path, b"third")
    assert path.read_bytes() == b"one\nthird\n"


def test_a_line_is_written_on_after_a_short_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may take less than all without any fault."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, bytes(content)[:2]))
    append_line(path, b"a longer line")
    assert path.read_bytes() == b"a longer line\n"


def test_a_line_that_cannot_be_taken_back_costs_only_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure that is told is the first one, and the next line begins on its own."""
    append_line(path, b"one")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched, room_for_bytes(6):
        patched.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="too large"):
            append_line(path, b"another")
    append_line(path, b"third")
    assert path.read_bytes() == b"one\nan\nthird\n"


def test_a_line_after_a_cut_off_one_begins_anew(path: Path) -> None:
    """A crash, or a power failure, has left a half of it."""
    path.write_bytes(b"one\nha")
    append_line(path, b"two")
    assert path.read_bytes() == b"one\nha\ntwo\n"


def test_lines_of_two_writers_do_not_mix(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that takes its line back take another's with it."""
    entered, go_on = threading.Event(), threading.Event()
    real = os.write

    def late(descriptor: int, content: bytes) -> int:
        if bytes(content).startswith(b"slow"):
            entered.set()
            go_on.wait(5)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", late)

    def fail_slowly() -> None:
        with pytest.raises(OSError, match="No space left"):
            append_line(path, b"slow")

    slow = threading.Thread(target=fail_slowly)
    slow.start()
    entered.wait(5)
    fast = threading.Thread(target=append_line, args=(path, b"fast"))
    fast.start()
    go_on.set()
    slow.join()
    fast.join()
    assert path.read_bytes() == b"fast\n"


def test_a_link_is_not_appended_to(path: Path) -> None:
    """Root's command could be led to any file."""
    path.symlink_to(path.parent / "other")
    with pytest.raises(OSError, match="symbolic links"):
        append_line(path, b"x")
    assert not (path.parent / "other").exists()


# --- Locking ----------------------------------------------------------------------------------------------------------


def test_a_lock_keeps_others_out_until_it_is_given_back(path: Path) -> None:
    """Also where the change fails."""
    lock = path.with_name(".state.json.lock")

    def is_free() -> bool:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def fail() -> None:
        with locked(path):
            assert not is_free()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert is_free()


def test_a_lock_clears_away_drafts_of_its_own_file_only(path: Path) -> None:
    """Not those of a file with a similar name, nor a copy that somebody made."""
    names = [".state.json.ab.draft", ".state.jsonl.ab.draft", "state.json.draft", "state.json.bak"]
    for name in names:
        (path.parent / name).touch()
    with locked(path):
        pass
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted([*names[1:], ".state.json.lock"])


def test_a_link_is_not_taken_for_a_lock(path: Path) -> None:
    """Root's command would make, and give away, what it points to."""
    path.with_name(".state.json.lock").symlink_to(path.parent / "other")
    with pytest.raises(OSError, match="symbolic links"), locked(path):
        pass
    assert not (path.parent / "other").exists()


# --- Reading and watching ---------------------------------------------------------------------------------------------


def test_only_a_plain_file_is_read(path: Path) -> None:
    """Neither a link nor a pipe that would never end leads a reader astray."""
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        read_plain(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a plain file"):
        read_plain(path)


def test_refused_files_are_closed(path: Path) -> None:
    """A coordinator looks at a damaged file again and again."""
    path.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(OSError, match="not a plain file"):
            read_plain(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_stamp_tells_a_replaced_file_from_its_former_self(path: Path) -> None:
    """Even with the same size and time."""
    assert stamp_of(path) is None
    replace_file(path, b"one")
    first = stamp_of(path)
    assert first == stamp_of(path)
    facts = path.stat()
    replace_file(path, b"two")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert stamp_of(path) != first


def test_a_links_stamp_is_its_own_unless_it_is_followed(path: Path) -> None:
    """Certificates are links to the newest one; state files are not."""
    target = path.parent / "target"
    target.write_bytes(b"one")
    path.symlink_to(target)
    own, targets = stamp_of(path), stamp_of(path, follow_links=True)
    assert targets == stamp_of(target) != own
    target.write_bytes(b"three")
    assert stamp_of(path) == own
    assert stamp_of(path, follow_links=True) != targets


# --- The only door ----------------------------------------------------------------------------------------------------

_ROOT = Path(__file__).parents[2]
_OWN_WAYS = {
    ("fcntl", "flock"),
    ("fcntl", "lockf"),
    ("os", "fsync"),
    ("os", "link"),
    ("os", "rename"),
    ("os", "replace"),
    ("tempfile", "NamedTemporaryFile"),
    ("tempfile", "mkstemp"),
}


_MAY = (
    _ROOT / "common" / "statefile.py",
    # Holds a file that has no content, so that engines which are loaded together are measured one after the other.
    _ROOT / "agent" / "engine" / "loading" / "warmup.py",
    # Holds a device for as long as the process lives; what the file says is only for people.
    _ROOT / "agent" / "energy" / "ownership.py",
    # A file that llama.cpp reads a header from and nobody keeps.
    _ROOT / "agent" / "engine" / "llama" / "architecture.py",
    # Gives a model that has been downloaded its name: gigabytes that were checked, no state.
    _ROOT / "agent" / "models" / "pulling.py",
)


@pytest.mark.slow
def test_nobody_else_replaces_or_locks_files() -> None:
    """A second way to write state would have to be as careful, and is not needed."""
    assert all(path.is_file() for path in _MAY)
    found = [
        f"{path.relative_to(_ROOT)}:{node.lineno}"
        for room in ("agent", "common", "coordinator")
        for path in sorted((_ROOT / room).rglob("*.py"))
        if path not in _MAY
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in _OWN_WAYS
    ]
    assert found == []


def test_a_folder_that_can_be_written_has_no_fault_and_stays_empty(tmp_path: Path) -> None:
    """What was tried is gone."""
    assert write_fault(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_the_folders_fault(tmp_path: Path) -> None:
    """A file can be made there still; nothing of it stays."""
    with room_for_bytes(1000):
        fault = write_fault(tmp_path)
    assert fault is not None
    assert fault.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_has_a_fault(tmp_path: Path) -> None:
    """It is not made: it would belong to whoever asks."""
    fault = write_fault(tmp_path / "none")
    assert fault is not None
    assert fault.errno == errno.ENOENT
