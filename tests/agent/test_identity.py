"""The agent's identity."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from moe2.agent.identity import load_identity
from moe2.common.errors import Moe2Error


def test_a_first_start_makes_an_identity(tmp_path: Path) -> None:
    """In a directory that it makes as well, with nothing else left behind."""
    agent_id = load_identity(tmp_path / "state" / "moe2")
    assert re.fullmatch(r"agent-[0-9a-f]{32}", agent_id)
    assert os.listdir(tmp_path / "state" / "moe2") == ["agent-id"]


def test_an_identity_stays(tmp_path: Path) -> None:
    """Over restarts."""
    assert load_identity(tmp_path) == load_identity(tmp_path)


def test_identities_differ(tmp_path: Path) -> None:
    """Two hosts are two agents."""
    assert load_identity(tmp_path / "a") != load_identity(tmp_path / "b")


def test_two_daemons_that_start_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes second takes what the first has made meanwhile."""
    other = f"agent-{'a' * 32}"
    link = os.link

    def link_late(source: Path, target: Path) -> None:
        target.write_text(other + "\n")
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    assert load_identity(tmp_path) == other
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
