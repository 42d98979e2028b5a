"""The agent's credential and what it shows."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from moe2.agent.link.credential import AgentCredentials
from moe2.agent.link.identity import Identity
from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.link.enrolment import AGENT_ID_HEADER, AGENT_NAME_HEADER, CREDENTIAL_HEADER


def credentials(
    root: Path, *, token: str | None = "tok", name: str = "one", copied_from: str | None = None
) -> AgentCredentials:
    path = root / "token"
    path.unlink(missing_ok=True)
    if token is not None:
        path.write_text(token)
    return AgentCredentials(
        identity=Identity("agent-1", copied_from), agent_name=name, state_dir=root / "state", token_file=path
    )


def test_the_first_contact_shows_token_and_credential(tmp_path: Path) -> None:
    """And the id that the two are to be bound to; the name may have any characters."""
    headers = credentials(tmp_path, name="Küche").headers()
    assert headers["Authorization"] == "Bearer tok"
    assert len(headers[CREDENTIAL_HEADER]) == 43
    assert (headers[AGENT_ID_HEADER], headers[AGENT_NAME_HEADER]) == ("agent-1", "K%C3%BCche")


def test_the_credential_is_made_before_it_is_shown_and_stays(tmp_path: Path) -> None:
    """A crash after the coordinator has bound it loses nothing."""
    secret = credentials(tmp_path).headers()[CREDENTIAL_HEADER]
    assert credentials(tmp_path).headers()[CREDENTIAL_HEADER] == secret


def test_an_enrolled_agent_needs_no_token(tmp_path: Path) -> None:
    """Its file may be removed, also before a restart."""
    first = credentials(tmp_path)
    secret = first.headers()[CREDENTIAL_HEADER]
    first.enrolled()
    for later in (first, credentials(tmp_path, token=None)):
        headers = later.headers()
        assert headers["Authorization"] == f"Bearer {secret}"
        assert CREDENTIAL_HEADER not in headers


def test_nobody_else_reads_the_credential(tmp_path: Path) -> None:
    """Only the file is left."""
    credentials(tmp_path).enrolled()
    [path] = (tmp_path / "state").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_token_or_enrolment_the_agent_does_not_start(tmp_path: Path) -> None:
    """A missing file and a missing setting are both named."""
    with pytest.raises(ConfigError, match="token: the token cannot be read"):
        credentials(tmp_path, token=None)
    with pytest.raises(ConfigError, match=r"coordinator\.token_file: required until"):
        AgentCredentials(identity=Identity("agent-1"), agent_name="one", state_dir=tmp_path, token_file=None)


def test_a_changed_token_is_used_at_the_next_attempt(tmp_path: Path) -> None:
    """Without a restart."""
    shown = credentials(tmp_path)
    (tmp_path / "token").write_text("better")
    assert shown.headers()["Authorization"] == "Bearer better"


def test_an_unknown_credential_brings_the_token_back_once(tmp_path: Path) -> None:
    """A refused token is nothing new to show, nor is a missing one."""
    shown = credentials(tmp_path)
    shown.enrolled()
    assert shown.unknown()
    assert shown.headers()["Authorization"] == "Bearer tok"
    assert not shown.unknown()
    without = credentials(tmp_path, token=None)
    assert not without.unknown()


def test_a_damaged_credential_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """It is not replaced: the coordinator knows the lost one."""
    credentials(tmp_path)
    path = tmp_path / "state" / "credential"
    path.write_text("{")
    with pytest.raises(Moe2Error, match=r"does not hold a credential\. Remove"):
        credentials(tmp_path)
    assert path.read_text() == "{"


def test_a_copy_does_not_use_the_credential_of_the_original(tmp_path: Path) -> None:
    """It makes one of its own, enrols with its token, and needs it no more after that."""
    original = credentials(tmp_path)
    secret = original.headers()[CREDENTIAL_HEADER]
    original.enrolled()
    copy = AgentCredentials(
        identity=Identity("agent-2", "agent-1"),
        agent_name="one",
        state_dir=tmp_path / "state",
        token_file=tmp_path / "token",
    )
    headers = copy.headers()
    assert copy.is_copy_to_enrol
    assert headers["Authorization"] == "Bearer tok"
    assert headers[AGENT_ID_HEADER] == "agent-2"
    assert secret not in headers.values()
    copy.enrolled()
    again = AgentCredentials(
        identity=Identity("agent-2", "agent-1"), agent_name="one", state_dir=tmp_path / "state", token_file=None
    )
    assert not again.is_copy_to_enrol
    assert again.headers()["Authorization"] == f"Bearer {headers[CREDENTIAL_HEADER]}"


@pytest.mark.parametrize(("copied_from", "kept"), [(None, True), ("agent-0", False)])
def test_a_credential_of_an_earlier_release_stays_that_of_its_own_machine(
    tmp_path: Path, copied_from: str | None, kept: bool
) -> None:
    """Such a file does not say whose it is."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "credential").write_text('{"secret":"earlier","enrolled":true}')
    headers = credentials(tmp_path, copied_from=copied_from).headers()
    assert (headers["Authorization"] == "Bearer earlier") == kept


def test_a_copy_without_a_token_is_told_what_to_do(tmp_path: Path) -> None:
    """The operator cloned a host and wonders why the agent wants a token again."""
    with pytest.raises(ConfigError, match=r"copied from another machine \(agent-0\).*enrol-token create"):
        credentials(tmp_path, token=None, copied_from="agent-0")
