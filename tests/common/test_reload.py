"""Reading the settings again, on SIGHUP."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Annotated, Any

import pytest
from structlog.testing import capture_logs

from moe2.common.config import LIVE, Settings, load_settings
from moe2.common.errors import Moe2Error
from moe2.common.health import Severity
from moe2.common.reload import Reload
from moe2.common.sdnotify import Notifier


class Part(Settings):
    level: Annotated[str, LIVE] = "info"
    port: int = 1


class Whole(Settings):
    part: Part = Part()


class Told(Notifier):
    def __init__(self) -> None:
        super().__init__({})
        self.words: list[str] = []

    def notify(self, *assignments: str) -> None:
        self.words.append(assignments[0])


class Daemon:
    """A daemon's reload, and the settings it was told to apply."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("")
        self.applied: list[Whole] = []
        self.refuse = False
        self.notifier = Told()
        self.reload = Reload(self.load(), load=self.load, apply=self.apply, notifier=self.notifier)

    def write(self, lines: str) -> None:
        self.path.write_text(f"[part]\n{lines}")

    def load(self) -> Whole:
        return load_settings(Whole, self.path, environment={}, prefix="X")

    def apply(self, former: Whole, settings: Whole) -> None:
        if self.refuse:
            raise Moe2Error("The gate is damaged.")
        self.applied.append(settings)

    def again(self, lines: str) -> list[MutableMapping[str, Any]]:
        """Reload with these lines in the file; what was logged."""
        self.write(lines)
        with capture_logs() as logs:
            self.reload.reload()
        return logs


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path / "daemon.toml")


def test_what_can_change_is_applied(daemon: Daemon) -> None:
    """And logged; nothing is left to warn about."""
    [line] = daemon.again('level = "debug"')
    assert daemon.applied[-1].part.level == daemon.reload.running.part.level == "debug"
    assert (line["event"], line["applied"]) == ("configuration_reloaded", {"part.level": "debug"})
    assert daemon.reload.warnings() == []


def test_what_cannot_change_is_kept_and_told_of_each(daemon: Daemon) -> None:
    """In the log and in the status, with both values, until the configuration says the old one again."""
    logs = daemon.again('level = "debug"\nport = 2')
    assert daemon.reload.running == Whole(part=Part(level="debug", port=1))
    assert {"event": "restart_needed", "key": "part.port", "running": "1", "configured": "2"}.items() <= logs[1].items()
    [warning] = daemon.reload.warnings()
    assert (warning.code, warning.severity) == ("restart_needed", Severity.NOTICE)
    assert "part.port is 1 in the running daemon, 2 in its configuration" in warning.message
    daemon.again("port = 1")
    assert daemon.reload.warnings() == []


@pytest.mark.parametrize("lines", ["port = ", "port = 'x'\nlevel = 'debug'", "prot = 1"])
def test_a_broken_file_changes_nothing_and_says_so(daemon: Daemon, lines: str) -> None:
    """Every fault is told, and gone when it is mended."""
    before = daemon.reload.running
    [line] = daemon.again(lines)
    assert line["event"] == "configuration_refused"
    assert line["faults"][0].startswith(str(daemon.path))
    assert daemon.reload.running is before
    assert daemon.applied == []
    [warning] = daemon.reload.warnings()
    assert (warning.code, warning.severity) == ("configuration_refused", Severity.DEGRADED)
    daemon.again("")
    assert daemon.reload.warnings() == []


def test_what_cannot_be_applied_changes_nothing(daemon: Daemon) -> None:
    """A checkpoint that is damaged, say."""
    daemon.refuse = True
    [line] = daemon.again('level = "debug"')
    assert line["faults"] == ["The gate is damaged."]
    assert daemon.reload.running.part.level == "info"


def test_files_that_the_settings_name_are_read_again_too(daemon: Daemon) -> None:
    """So that it is applied although no setting has changed."""
    daemon.again("")
    assert len(daemon.applied) == 1


@pytest.mark.parametrize("lines", ["", "port = "])
def test_systemd_is_told_when_it_begins_and_ends(daemon: Daemon, lines: str) -> None:
    """Whatever came of it."""
    daemon.again(lines)
    assert daemon.notifier.words == ["RELOADING=1", "READY=1"]


def test_settings_that_did_not_come_from_a_file_cannot_be_read_again(daemon: Daemon) -> None:
    """A daemon inside another program is not ended by it."""
    reload = Reload(Whole(), load=None, apply=daemon.apply, notifier=daemon.notifier)
    with capture_logs() as logs:
        reload.reload()
    assert [line["event"] for line in logs] == ["reload_ignored"]
