"""The command `moe2-coordinator agents`, from its arguments to the register's file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from moe2.common.link.enrolment import digest
from moe2.coordinator.__main__ import main
from moe2.coordinator.fleet.register import Presented, admit
from moe2.coordinator.fleet.register_file import RegisterFile


class Shell:
    """Runs commands on a coordinator's state."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = RegisterFile(root)
        self._config = root / "coordinator.toml"
        self._config.write_text(f'[coordinator]\nstate_dir = "{root}"\n')
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: str, code: int = 0) -> tuple[str, str]:
        """Runs a command and returns what it prints: its output and its errors."""
        argv = ["moe2-coordinator", "agents", *words, "--config", str(self._config)]
        self._monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        said = self._capsys.readouterr()
        return said.out, said.err

    def enrol(self, agent_id: str, name: str, token: str) -> None:
        presented = Presented(bearer=token, agent_id=agent_id, agent_name=name, offered="o" * 43)
        self.file.change(lambda register: admit(register, presented, static_token=None, now_unix_s=1.0))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_a_token_is_shown_once_and_kept_as_a_hash(shell: Shell) -> None:
    """A new token alone goes to standard output, and only its hash is kept."""
    out, err = shell("enrol-token", "create", "t", "--expires", "24h", "--uses", "2")
    secret = out.strip()
    [token] = shell.file.current().tokens
    assert token.sha256 == digest(secret)
    assert token.expires_unix_s == pytest.approx(token.created_unix_s + 86_400)
    assert "2 of 2 uses left" in err
    assert secret not in err + shell.file.path.read_text()


def test_the_list_of_tokens_tells_their_state_and_no_secret(shell: Shell) -> None:
    """The list of tokens shows their state and no secret, drawn and as JSON."""
    secret = shell("enrol-token", "create", "good")[0].strip()
    shell("enrol-token", "create", "bad")
    shell("enrol-token", "revoke", "bad")
    drawn = shell("enrol-token", "list")[0]
    listed = shell("enrol-token", "list", "--json")[0]
    assert [line.split()[:2] for line in drawn.splitlines()[1:]] == [["good", "good"], ["bad", "revoked"]]
    assert [row["name"] for row in json.loads(listed)] == ["good", "bad"]
    assert not any(word in drawn + listed for word in (secret, digest(secret)))


def test_agents_are_listed_with_the_token_that_enrolled_them(shell: Shell) -> None:
    """Agents are listed with the token that enrolled them, drawn and as JSON."""
    shell.enrol("agent-1", "one\x1b[31m", shell("enrol-token", "create", "t")[0].strip())
    drawn = shell("list")[0]
    assert "agent-1" in drawn
    assert "\x1b" not in drawn
    [row] = json.loads(shell("list", "--json")[0])
    assert (row["agent_id"], row["token"]) == ("agent-1", "t")


def test_revoking_an_agent_points_at_a_token_that_is_still_good(shell: Shell) -> None:
    """Whoever revokes an agent is told of a token that its host could enrol with again."""
    shell.enrol("agent-1", "one", shell("enrol-token", "create", "t")[0].strip())
    assert "enrol-token revoke t" in shell("revoke", "one")[0]
    assert shell.file.current().agents[0].revoked_unix_s is not None
    shell("enrol-token", "revoke", "t")
    assert "still good" not in shell("revoke", "one")[0]
    shell("forget", "one")
    assert shell.file.current().agents == ()


def test_empty_lists_say_so(shell: Shell) -> None:
    """An empty list is a sentence."""
    assert "There are no enrolment tokens" in shell("enrol-token", "list")[0]
    assert "No agent is enrolled" in shell("list")[0]


def test_an_unknown_agent_is_an_error(shell: Shell) -> None:
    """An unknown agent ends the command with status 1 and a remedy."""
    assert "agents list" in shell("revoke", "nobody", code=1)[1]


@pytest.mark.parametrize(
    "words",
    [("a b",), ("",), ("t", "--expires", "24"), ("t", "--expires", "0h"), ("t", "--uses", "0"), ("t", "--uses", "-1")],
)
def test_wrong_words_are_wrong_usage(shell: Shell, words: tuple[str, ...]) -> None:
    """Wrong arguments make no token."""
    shell("enrol-token", "create", *words, code=2)
    assert shell.file.current().tokens == ()
