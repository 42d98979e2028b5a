"""The agent's identity."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from moe2.agent.link.identity import load_identity, machine_fingerprint
from moe2.common.errors import Moe2Error

ONE = "4d5e1a0c6b0f4f0f9f0a3c2b1d0e9f88"
FINGERPRINT_OF_ONE = "e3f860a3a0d14f31b430fdc4de9e3aa7"
TWO = "00112233445566778899aabbccddeeff"


def machine_id(root: Path, content: str) -> Path:
    path = root / "machine-id"
    path.write_text(content + "\n")
    return path


def test_a_first_start_makes_an_identity(tmp_path: Path) -> None:
    """In a directory that it makes as well, with nothing else left behind."""
    identity = load_identity(tmp_path / "state" / "moe2", machine_id_file=machine_id(tmp_path, ONE))
    assert re.fullmatch(r"agent-[0-9a-f]{32}", identity.agent_id)
    assert identity.copied_warning is None
    assert sorted(os.listdir(tmp_path / "state" / "moe2")) == ["agent-id", "agent-machine"]


def test_an_identity_stays(tmp_path: Path) -> None:
    """Over restarts."""
    assert load_identity(tmp_path) == load_identity(tmp_path)


def test_identities_differ(tmp_path: Path) -> None:
    """Two hosts are two agents."""
    assert load_identity(tmp_path / "a").agent_id != load_identity(tmp_path / "b").agent_id


def test_two_daemons_that_start_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes second takes what the first has made meanwhile."""
    other = f"agent-{'a' * 32}"
    link = os.link

    def link_late(source: Path, target: Path) -> None:
        target.write_text(other + "\n")
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    assert load_identity(tmp_path, machine_id_file=tmp_path / "none").agent_id == other
    assert os.listdir(tmp_path) == ["agent-id"]


@pytest.mark.parametrize("content", ["", "agent-1", "coordinator", "agent-" + "g" * 32])
def test_a_file_that_holds_no_identity_is_refused_with_a_remedy(tmp_path: Path, content: str) -> None:
    """It is not overwritten: it may be the wrong directory."""
    (tmp_path / "agent-id").write_text(content)
    with pytest.raises(Moe2Error, match=r"does not hold an agent id\. Remove the file"):
        load_identity(tmp_path)
    assert (tmp_path / "agent-id").read_text() == content


def test_a_file_of_noise_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """Bytes that are no text included."""
    (tmp_path / "agent-id").write_bytes(b"\xff\xfe")
    with pytest.raises(Moe2Error, match="cannot be used"):
        load_identity(tmp_path)


def test_a_directory_that_cannot_be_made_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """The error names the directory and the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(Moe2Error, match=r"cannot be used: .* agent\.state_dir"):
        load_identity(tmp_path / "file" / "state")


# --- Copies -----------------------------------------------------------------------------------------------------------


def test_a_machines_fingerprint_is_systemds(tmp_path: Path) -> None:
    """As `systemd-id128 machine-id --app-specific=9d3c1f6a5e0b4b7c8f21d4a06b98e357` says of the same machine id."""
    assert machine_fingerprint(machine_id(tmp_path, ONE)) == FINGERPRINT_OF_ONE


@pytest.mark.parametrize("content", ["", "uninitialized", "0" * 32, "g" * 32, "\u0664" * 32])
def test_what_is_no_machine_id_names_no_machine(tmp_path: Path, content: str) -> None:
    """Images say so before their first start, and containers have none."""
    assert machine_fingerprint(machine_id(tmp_path, content)) is None
    assert machine_fingerprint(tmp_path / "missing") is None


def test_a_copy_on_another_machine_is_another_agent(tmp_path: Path) -> None:
    """It says whose copy it is, and stays the same from then on."""
    original = load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, ONE))
    copy = load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, TWO))
    assert copy.agent_id != original.agent_id
    assert copy.copied_from == original.agent_id
    assert copy.copied_warning is not None
    assert original.agent_id in copy.copied_warning.remedy
    assert load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, TWO)) == copy


def test_an_identity_of_an_earlier_release_is_kept_and_bound(tmp_path: Path) -> None:
    """It was not bound to any machine; from now on it is."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "agent-id").write_text(f"agent-{'a' * 32}\n")
    assert load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, ONE)).agent_id == f"agent-{'a' * 32}"
    assert load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, TWO)).agent_id != f"agent-{'a' * 32}"


def test_a_host_without_a_machine_id_keeps_its_identity(tmp_path: Path) -> None:
    """Nothing tells whether it is a copy."""
    bound = load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, ONE))
    assert load_identity(tmp_path / "state", machine_id_file=tmp_path / "none").agent_id == bound.agent_id


def test_a_crash_between_the_new_id_and_its_binding_makes_no_third_agent(tmp_path: Path) -> None:
    """The next start goes on with the id that it finds, and still knows that it is a copy."""
    original = load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, ONE))
    before = (tmp_path / "state" / "agent-machine").read_bytes()
    copy = load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, TWO))
    (tmp_path / "state" / "agent-machine").write_bytes(before)
    again = load_identity(tmp_path / "state", machine_id_file=machine_id(tmp_path, TWO))
    assert again == copy
    assert again.copied_from == original.agent_id


def test_a_damaged_binding_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """It is not guessed whether this is a copy."""
    load_identity(tmp_path, machine_id_file=machine_id(tmp_path, ONE))
    (tmp_path / "agent-machine").write_text("{")
    with pytest.raises(Moe2Error, match=r"does not say on which machine .* Remove the file"):
        load_identity(tmp_path, machine_id_file=machine_id(tmp_path, ONE))
