"""`moe2-coordinator database` as a user types it, on a real PostgreSQL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moe2.coordinator.__main__ import main
from moe2.coordinator.database.schema import known_version
from tests.fakes.postgres import needs_postgres, postgres


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moe2.coordinator", "database", *arguments, "--config", str(config)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.slow
@needs_postgres
def test_init_makes_the_tables_once_and_status_shows_them(tmp_path: Path) -> None:
    """`init` makes the tables, says so, and changes nothing the second time; `status --json` has the version."""
    with postgres() as server:
        config = tmp_path / "coordinator.toml"
        config.write_text(f'[database]\nurl = "{server.new_database()}"\n')
        assert json.loads(run(config, "status", "--json").stdout)["version"] == 0
        assert "database init" in run(config, "status").stdout
        assert run(config, "init").stdout == f"The database was brought from version 0 to {known_version()}.\n"
        assert "up to date" in run(config, "init").stdout
        assert json.loads(run(config, "status", "--json").stdout)["version"] == known_version()


@pytest.mark.parametrize("command", ["init", "status"])
def test_without_a_database_it_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A configuration without a database is refused with the key to set."""
    config = tmp_path / "coordinator.toml"
    config.write_text("")
    monkeypatch.setattr(sys, "argv", ["moe2-coordinator", "database", command, "--config", str(config)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "database.url" in capsys.readouterr().err


@pytest.mark.slow
def test_a_database_that_is_away_is_told(tmp_path: Path) -> None:
    """A server that cannot be reached is an error of one line, not a traceback."""
    config = tmp_path / "coordinator.toml"
    config.write_text('[database]\nurl = "postgresql:///x?host=/nowhere"\n')
    done = run(config, "init")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
