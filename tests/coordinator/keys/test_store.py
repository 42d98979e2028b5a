"""The key file: who may read it, what a reader sees, and what a damaged one says."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from moe2.common.health import Severity
from moe2.coordinator.keys.keys import KeyRecord, Refusal
from moe2.coordinator.keys.store import KeyFile, KeyFileError, KeyRing
from tests.coordinator.keys.keys import NOW_UNIX_S, add_key, made, revoke


def codes(ring: KeyRing) -> list[str]:
    return [warning.code for warning in ring.warnings()]


def ring_of(file: KeyFile) -> KeyRing:
    return KeyRing(file, clock=lambda: NOW_UNIX_S)


# --- The file ---------------------------------------------------------------------------------------------------------


def test_no_file_holds_no_keys(tmp_path: Path) -> None:
    """A missing file holds no keys, as with a fresh coordinator."""
    assert KeyFile(tmp_path).read().keys == ()


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """Only its owner can read the file, whatever the umask is."""
    before = os.umask(0)
    try:
        add_key(KeyFile(tmp_path / "state"))
    finally:
        os.umask(before)
    for name in ("keys.json", ".keys.json.lock"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600


def test_the_file_is_replaced_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """The file is replaced as a whole: a reader that has the old one open still reads all of it."""
    file = KeyFile(tmp_path)
    add_key(file, 1)
    with file.path.open() as old:
        add_key(file, 2)
        assert len(json.load(old)["keys"]) == 1
    assert len(file.read().keys) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_failed_write_keeps_the_old_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs no key and leaves no half-written file."""
    file = KeyFile(tmp_path)
    add_key(file, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match=r"No space left on device\. Make room on the disk\."):
        add_key(file, 2)
    assert len(file.read().keys) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keys.json.lock", "keys.json"]


def test_what_a_killed_command_left_is_cleared_away(tmp_path: Path) -> None:
    """The draft of a killed command is removed by the next one, which touches nothing else."""
    for name in (".keys.json.x1y2.draft", "keys.json.bak"):
        (tmp_path / name).touch()
    add_key(KeyFile(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keys.json.lock", "keys.json", "keys.json.bak"]


def test_two_commands_at_once_lose_no_key(tmp_path: Path) -> None:
    """Two commands at once lose no key, as each waits for the other."""
    file = KeyFile(tmp_path)
    threads = [threading.Thread(target=add_key, args=(file, seed)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read().keys) == 8


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link in the file's place is not followed, as the command may run as root."""
    (tmp_path / "elsewhere").write_text('{"version": 1, "keys": []}')
    (tmp_path / "keys.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="symbolic links"):
        KeyFile(tmp_path).read()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "Invalid JSON"),
        ('{"version": 1, "keys": [', "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"version": 2, "keys": []}', "version"),
        ('{"version": 1, "keys": [{"id": "00"}]}', r"keys\.0\."),
        ('{"version": 1, "keys": [], "extra": 1}', "extra"),
    ],
)
def test_a_damaged_file_is_an_error_with_its_place(tmp_path: Path, content: str, says: str) -> None:
    """A damaged file is an error with the place of the damage and a remedy."""
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(KeyFileError, match=says) as error:
        KeyFile(tmp_path).read()
    assert "keys create" in str(error.value)


def test_an_error_does_not_show_what_the_file_holds(tmp_path: Path) -> None:
    """An error does not show what the file holds, not even a digest that is too short."""
    file = KeyFile(tmp_path)
    record, _ = add_key(file)
    file.path.write_text(file.path.read_text().replace(record.secret_sha256, record.secret_sha256[:60]))
    with pytest.raises(KeyFileError, match="secret_sha256") as error:
        file.read()
    assert record.secret_sha256[:60] not in str(error.value)


def test_who_may_not_read_it_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without permission to read it is not taken for a damaged one."""
    add_key(KeyFile(tmp_path))

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(KeyFileError, match=r"Permission denied.*sudo"):
        KeyFile(tmp_path).read()


# --- The keys in force ------------------------------------------------------------------------------------------------


def test_a_new_key_counts_at_once(tmp_path: Path) -> None:
    """A new key counts at once, without a restart."""
    file = KeyFile(tmp_path)
    ring = ring_of(file)
    _, key = made()
    assert ring.check(key) is Refusal.UNKNOWN
    add_key(file)
    assert isinstance(ring.check(key), KeyRecord)


def test_a_revoked_key_ends_at_once(tmp_path: Path) -> None:
    """A revoked key ends at once, also for requests in progress."""
    file = KeyFile(tmp_path)
    record, key = add_key(file)
    ring = ring_of(file)
    assert ring.is_active(record.id)
    revoke(file, record.id)
    assert not ring.is_active(record.id)
    assert ring.check(key) is Refusal.REVOKED


def test_a_file_that_is_removed_holds_no_keys(tmp_path: Path) -> None:
    """After the file has been removed no key is accepted."""
    file = KeyFile(tmp_path)
    _, key = add_key(file)
    ring = ring_of(file)
    file.path.unlink()
    assert ring.check(key) is Refusal.UNKNOWN
    assert codes(ring) == ["no_keys"]


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    """A file that is damaged at the start is an error, as no keys are known."""
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(KeyFileError, match="cannot be used"):
        ring_of(KeyFile(tmp_path))


def test_a_file_damaged_later_keeps_the_keys_of_before(tmp_path: Path) -> None:
    """A file that is damaged later leaves the former keys in force, with a warning."""
    file = KeyFile(tmp_path)
    _, key = add_key(file)
    ring = ring_of(file)
    good = file.path.read_text()
    file.path.write_text(good[: len(good) // 2])
    assert isinstance(ring.check(key), KeyRecord)
    (warning,) = ring.warnings()
    assert (warning.code, warning.severity) == ("keys_damaged", Severity.DEGRADED)
    assert warning.remedy
    file.path.write_text(good)
    assert isinstance(ring.check(key), KeyRecord)
    assert codes(ring) == []


def test_a_folder_in_its_place_is_damage_too(tmp_path: Path) -> None:
    """A folder in the file's place counts as damage."""
    file = KeyFile(tmp_path)
    _, key = add_key(file)
    ring = ring_of(file)
    file.path.unlink()
    file.path.mkdir()
    assert isinstance(ring.check(key), KeyRecord)
    assert codes(ring) == ["keys_damaged"]


def test_no_active_key_is_a_warning(tmp_path: Path) -> None:
    """A warning says that there is no active key, as then nobody can ask anything."""
    file = KeyFile(tmp_path)
    ring = ring_of(file)
    assert codes(ring) == ["no_keys"]
    record, _ = add_key(file)
    assert codes(ring) == []
    revoke(file, record.id)
    assert codes(ring) == ["no_keys"]
