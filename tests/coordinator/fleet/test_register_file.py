"""The register's file on disk."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from moe2.common.errors import Moe2Error
from moe2.common.link.enrolment import digest
from moe2.coordinator.fleet.register import EnrolmentToken, Presented, Register, add_token, admit
from moe2.coordinator.fleet.register_file import RegisterFile

TOKEN = EnrolmentToken(name="t", sha256=digest("tok"), created_unix_s=1.5, most_uses=3)


def with_token(file: RegisterFile, token: EnrolmentToken = TOKEN) -> None:
    file.change(lambda register: (None, add_token(register, token)))


def test_what_one_process_writes_another_sees(tmp_path: Path) -> None:
    """A register that one process writes is what another one reads."""
    daemon, command = RegisterFile(tmp_path), RegisterFile(tmp_path)
    assert daemon.current() == Register()
    with_token(command)
    assert daemon.current().tokens == (TOKEN,)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    """A file that has not changed is not read again."""
    file = RegisterFile(tmp_path)
    with_token(file)
    assert file.current() is file.current()


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """Only the owner can read the file, whatever the umask is, and no drafts are left."""
    before = os.umask(0)
    try:
        with_token(RegisterFile(tmp_path))
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        "enrolment.json": 0o600,
        ".enrolment.json.lock": 0o600,
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_daemon(tmp_path: Path) -> None:
    """A register that root writes belongs to the daemon's user, who owns the directory."""
    os.chown(tmp_path, 12345, 12346)
    with_token(RegisterFile(tmp_path))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir()} == {(12345, 12346)}


def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    """Of sixteen threads that enrol at once with a token of three uses, three succeed."""
    with_token(RegisterFile(tmp_path))
    refused = []

    def enrol(number: int) -> None:
        presented = Presented(bearer="tok", agent_id=f"a{number}", offered=f"s{number}")
        try:
            RegisterFile(tmp_path).change(lambda now: admit(now, presented, static_token=None, now_unix_s=2.0))
        except Exception as error:
            refused.append(error)

    threads = [threading.Thread(target=enrol, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    register = RegisterFile(tmp_path).current()
    assert (len(register.agents), register.tokens[0].n_used, len(refused)) == (3, 3, 13)


def test_a_change_that_fails_leaves_the_file(tmp_path: Path) -> None:
    """A change that fails leaves the file as it was, and no draft."""
    file = RegisterFile(tmp_path)
    with_token(file)
    before = file.path.read_bytes()

    def fail(_: Register) -> tuple[None, Register]:
        raise Moe2Error("no")

    with pytest.raises(Moe2Error):
        file.change(fail)
    assert file.path.read_bytes() == before


def test_what_a_killed_process_left_is_cleaned_up(tmp_path: Path) -> None:
    """The draft of a killed process is removed by the next change."""
    file = RegisterFile(tmp_path)
    left = file.path.with_name(".enrolment.json.x1y2.draft")
    left.write_text("half")
    with_token(file)
    assert not left.exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"tokens": 1}', b"\xff"])
def test_a_damaged_file_is_refused_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    """A damaged file is refused with a remedy and not overwritten, which would lock all agents out."""
    file = RegisterFile(tmp_path)
    file.path.write_bytes(content)
    with pytest.raises(Moe2Error, match=r"cannot be understood: .* Restore it"):
        with_token(file)
    assert file.path.read_bytes() == content


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A directory that cannot be used is named, with what to look at."""
    (tmp_path / "file").touch()
    with pytest.raises(Moe2Error, match=r"cannot be used: .*coordinator\.state_dir"):
        RegisterFile(tmp_path / "file").current()


@pytest.mark.parametrize("name", ["enrolment.json", ".enrolment.json.lock"])
def test_a_link_in_its_place_is_not_followed(tmp_path: Path, name: str) -> None:
    """A symbolic link in the file's place is not followed, as it could lead root's command to any file."""
    other = tmp_path / "other"
    other.write_text("{}")
    state = tmp_path / "state"
    state.mkdir()
    (state / name).symlink_to(other)
    with pytest.raises(Moe2Error, match="cannot be used"):
        with_token(RegisterFile(state))
    assert other.read_text() == "{}"


def test_fields_that_a_newer_release_adds_are_ignored(tmp_path: Path) -> None:
    """Fields that a newer release adds are ignored, so that a coordinator can be rolled back."""
    file = RegisterFile(tmp_path)
    file.path.write_text('{"tokens": [{"name": "t", "sha256": "x", "created_unix_s": 1, "later": 1}], "more": []}')
    assert file.current().tokens == (replace(TOKEN, sha256="x", created_unix_s=1.0, most_uses=None),)
