"""The command `moe2-coordinator keys`."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.terminal.commandline import Command
from moe2.coordinator.choosing.request import Budgets
from moe2.coordinator.cli import keys as cli_keys
from moe2.coordinator.cli.keys import add_arguments
from moe2.coordinator.keys.keys import KeyRecord, KeyState, Refusal, Scope
from moe2.coordinator.keys.store import KeyFile, KeyRing
from tests.coordinator.keys.keys import NOW_UNIX_S, made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "coordinator.toml"
    path.write_text(
        f'[coordinator]\nstate_dir = "{tmp_path}"\n[api]\nkeys = "required"\n[agents]\ntoken_file = "token"\n'
    )
    return path


def keys(config: Path, *words: str) -> int:
    """Runs `moe2-coordinator keys WORDS` and returns its exit code."""
    parser = Command()
    add_arguments(parser)
    arguments = parser.parse_args([*words, "--config", str(config)])
    code: int = arguments.act(arguments)
    return code


def only(tmp_path: Path) -> KeyRecord:
    (record,) = KeyFile(tmp_path).read().keys
    return record


def test_the_key_is_written_to_stdout_alone(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output has nothing but the key, in one line, and the coordinator accepts it."""
    assert keys(config, "create", "app") == 0
    said = capsys.readouterr()
    key, rest = said.out.split("\n", 1)
    assert rest == ""
    assert isinstance(KeyRing(KeyFile(tmp_path)).check(key), KeyRecord)
    assert key.split("_", 2)[2] not in said.err
    assert only(tmp_path).id in said.err


def test_every_option_is_kept(tmp_path: Path, config: Path) -> None:
    """Scopes, expiry, rate, daily limits and budgets of a new key are kept."""
    words = (
        "--scope infer --scope observe --expires 30d --rpm 60 --energy-per-day 5e4 --tokens-per-day 1000000 "
        "--energy-budget 40 --latency-budget 10 --ttft-budget 2 --tpot-budget 0.5 --quantile p50 --max-experts 3"
    )
    before = time.time()
    keys(config, "create", "app", *words.split())
    record = only(tmp_path)
    assert record.scopes == (Scope.INFER, Scope.OBSERVE)
    assert record.expires_at_unix_s is not None
    assert record.expires_at_unix_s - record.created_at_unix_s == 30 * 86_400
    assert before <= record.created_at_unix_s <= time.time()
    assert (record.requests_per_minute, record.daily_energy_j, record.daily_tokens) == (60, 50_000, 1_000_000)
    assert record.budgets == Budgets.model_validate(
        {
            "energy_budget_j": 40,
            "latency_budget_s": 10,
            "ttft_budget_s": 2,
            "tpot_budget_s": 0.5,
            "quantile": "p50",
            "max_experts": 3,
        }
    )


def test_a_key_may_only_infer_unless_told(tmp_path: Path, config: Path) -> None:
    """Without options a key may only infer, which is the least that an app needs."""
    keys(config, "create", "app")
    assert only(tmp_path).scopes == (Scope.INFER,)


def test_json_has_the_key_and_its_record(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the output has the key and its record."""
    keys(config, "create", "app", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["key"].startswith(f"moe2_{document['id']}_")
    assert (document["name"], document["state"], document["scopes"]) == ("app", "active", ["infer"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--rpm", "0"), "requests_per_minute"),
        (("--rpm", "nan"), "requests_per_minute"),
        (("--energy-per-day", "-5"), "daily_energy_j"),
        (("--tokens-per-day", "0"), "daily_tokens"),
        (("--energy-budget", "-1"), r"budgets\.energy_budget_j"),
        (("--max-experts", "0"), r"budgets\.max_experts"),
    ],
)
def test_an_absurd_option_makes_no_key(tmp_path: Path, config: Path, options: tuple[str, ...], says: str) -> None:
    """An absurd option is named, and no key is made."""
    with pytest.raises(Moe2Error, match=says):
        keys(config, "create", "app", *options)
    assert not KeyFile(tmp_path).path.exists()


@pytest.mark.parametrize("span", ["", "30", "0d", "-1d", "1.5h", "3y", "1000000d"])
def test_nonsense_is_no_span_of_time(config: Path, span: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A span of time that makes no sense is refused with an example of how to write one."""
    with pytest.raises(SystemExit):
        keys(config, "create", "app", f"--expires={span}")
    assert "write 90m, 12h, 30d or 8w" in capsys.readouterr().err


def test_a_name_is_taken_as_long_as_its_key_is_active(tmp_path: Path, config: Path) -> None:
    """An active key's name cannot be used twice; a revoked key's name can."""
    keys(config, "create", "app")
    record = only(tmp_path)
    with pytest.raises(Moe2Error, match=record.id):
        keys(config, "create", "app")
    keys(config, "revoke", record.id)
    assert keys(config, "create", "app") == 0


def test_a_revoked_key_stays_in_the_list(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A revoked key stays in the list with the moment of its end, which a second revocation does not change."""
    keys(config, "create", "app")
    key, record = capsys.readouterr().out.strip(), only(tmp_path)
    keys(config, "revoke", record.id)
    revoked = only(tmp_path)
    assert revoked.state(time.time()) is KeyState.REVOKED
    assert KeyRing(KeyFile(tmp_path)).check(key) is Refusal.REVOKED
    assert keys(config, "revoke", record.id) == 0
    assert only(tmp_path) == revoked
    keys(config, "list")
    assert f"key id={record.id} name=app state=revoked" in capsys.readouterr().out


def test_a_whole_key_pasted_for_its_id_is_not_repeated(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole key that was pasted for its id is not repeated on standard error, which may end in a log."""
    keys(config, "create", "app")
    key = capsys.readouterr().out.strip()
    with pytest.raises(Moe2Error, match="keys list") as error:
        keys(config, "revoke", key)
    assert key not in str(error.value)


def test_neither_secret_nor_digest_is_listed(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list shows neither secrets nor digests, drawn, plain or as JSON."""
    keys(config, "create", "app")
    secret = capsys.readouterr().out.strip().split("_", 2)[2]
    record = only(tmp_path)
    keys(config, "list")
    keys(config, "list", "--json")
    console = Console(width=200)
    console.print(cli_keys.picture((record,), NOW_UNIX_S))
    shown = capsys.readouterr().out
    assert shown.count(record.id) == 3
    assert secret not in shown
    assert record.secret_sha256 not in shown


def test_keys_without_effect_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the coordinator asks for no keys, the command says that a new one has no effect."""
    path = tmp_path / "coordinator.toml"
    path.write_text(f'[coordinator]\nstate_dir = "{tmp_path}"\n[agents]\ntoken_file = "token"\n')
    keys(path, "create", "app")
    assert 'keys = "required"' in capsys.readouterr().err


def test_a_bad_configuration_makes_no_key(tmp_path: Path) -> None:
    """With a configuration that cannot be read no key is made, as its place would be a guess."""
    path = tmp_path / "coordinator.toml"
    path.write_text("[agents]\nport = 'x'\n")
    with pytest.raises(ConfigError, match=r"agents\.port"):
        keys(path, "create", "app")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_daemons_user(tmp_path: Path, config: Path) -> None:
    """A key that root makes belongs to the daemon's user, so that `sudo` does not lock the daemon out."""
    os.chown(tmp_path, 12_345, 54_321)
    keys(config, "create", "app")
    for name in ("keys.json", ".keys.json.lock"):
        facts = (tmp_path / name).stat()
        assert (facts.st_uid, facts.st_gid) == (12_345, 54_321)


# --- As drawn ---------------------------------------------------------------------------------------------------------


def drawn(*records: KeyRecord, now_unix_s: float = NOW_UNIX_S) -> str:
    screen = io.StringIO()
    Console(width=160, file=screen).print(cli_keys.picture(records, now_unix_s))
    return screen.getvalue()


def test_no_keys_yet_says_how_to_make_one() -> None:
    """Without keys the list says how to make one."""
    assert "moe2-coordinator keys create NAME" in drawn()


def test_the_table_shows_state_scopes_and_limits() -> None:
    """The table shows state, scopes and limits, and says where there is no limit."""
    limited, _ = made(
        1, expires_at_unix_s=NOW_UNIX_S + 7200, requests_per_minute=60, budgets=Budgets(energy_budget_j=2.5)
    )
    expired, _ = made(2, expires_at_unix_s=NOW_UNIX_S - 1, scopes=tuple(Scope))
    shown = drawn(limited, expired)
    for part in ("app-1", limited.id, "● active", "for 2 h 0 min", " 60 ", "2.50 J", "● expired", "infer, observe"):
        assert part in shown.replace("\u00a0", " ")
    assert shown.count("no limit") == 5


def test_a_name_cannot_drive_the_terminal() -> None:
    """Control characters in a name do not reach the terminal, as somebody may have edited the file."""
    record, _ = made()
    assert "a\ufffd[2Jb" in drawn(record.model_copy(update={"name": "a\x1b[2Jb"}))
