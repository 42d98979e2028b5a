"""`moe2-agent check-config`: what a start would miss beside the configuration."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from moe2.agent.__main__ import main
from moe2.agent.link.credential import FILE_NAME, Credential

_MODEL = '[[models]]\nname = "m"\npath = "m.gguf"\n'


@pytest.fixture(autouse=True)
def _shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


class Host:
    """A configuration in a folder, with what it names beside it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir()
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.configure()

    def configure(self, *, url: str = "ws://127.0.0.1:8081", link: str = "") -> None:
        text = f'[agent]\nstate_dir = "{self.state}"\n[coordinator]\nurl = "{url}"\n{link}\n{_MODEL}'
        (self.folder / "agent.toml").write_text(text)

    def check(self, *options: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        argv = ["moe2-agent", "check-config", "--config", str(self.folder / "agent.toml"), *options]
        self._monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path, monkeypatch, capsys)


def test_a_token_that_is_not_set_is_a_fault(host: Host) -> None:
    """As `run` would say; nothing is made in the state directory."""
    code, out, err = host.check()
    assert (code, out) == (78, "")
    assert "coordinator.token_file: required until this agent is enrolled, but not set." in err
    assert not list(host.state.iterdir())


def test_a_token_file_that_is_missing_or_empty_is_a_fault(host: Host) -> None:
    """It is named; with a token in it the configuration is good."""
    token = host.folder / "token"
    host.configure(link=f'token_file = "{token}"')
    code, _, err = host.check()
    assert code == 78
    assert f"{token}: the token cannot be read" in err
    token.write_text("\n")
    assert f"{token}: the token file is empty." in host.check()[2]
    token.write_text("a-token\n")
    assert host.check()[:1] == (0,)


def test_an_enrolled_agent_needs_no_token(host: Host) -> None:
    """It shows its credential."""
    credential = host.state / FILE_NAME
    credential.write_bytes(msgspec.json.encode(Credential(secret="s" * 43)))
    assert host.check()[0] == 78
    credential.write_bytes(msgspec.json.encode(Credential(secret="s" * 43, enrolled=True)))
    assert host.check()[0] == 0


def test_a_copy_of_another_machine_needs_a_token(host: Host) -> None:
    """It will be a new agent, whatever the credential says that came along."""
    (host.state / FILE_NAME).write_bytes(msgspec.json.encode(Credential(secret="s" * 43, enrolled=True)))
    binding = {"agent_id": f"agent-{'0' * 32}", "machine": "another"}
    (host.state / "agent-machine").write_bytes(msgspec.json.encode(binding))
    code, _, err = host.check()
    assert code == 78
    assert "required until this agent is enrolled" in err


def test_a_certificate_that_is_missing_is_a_fault_where_the_link_has_tls(host: Host) -> None:
    """Each fault is told, not only the first; without TLS the file is not needed."""
    missing = host.folder / "ca.pem"
    host.configure(url="wss://127.0.0.1:8081", link=f'ca_file = "{missing}"')
    code, _, err = host.check()
    assert code == 78
    assert "coordinator.token_file: required" in err
    assert str(missing) in err
    host.configure(link=f'ca_file = "{missing}"')
    assert str(missing) not in host.check()[2]


def test_another_hosts_configuration_is_checked_without_its_files(host: Host) -> None:
    """The files are over there."""
    assert host.check("--without-files")[0] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_this_user_may_not_read_is_no_fault(host: Host) -> None:
    """The service may; what is not known is said."""
    token = host.folder / "token"
    token.write_text("a-token")
    token.chmod(0)
    host.configure(link=f'token_file = "{token}"')
    code, _, err = host.check()
    assert code == 0
    assert f"whether it can be used is not known, as you may not read {token}" in err
