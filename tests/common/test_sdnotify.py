"""Telling systemd."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe2.common.sdnotify import Notifier


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A datagram socket as systemd holds one, and what it puts into NOTIFY_SOCKET."""
    if request.param == "file":
        address = variable = str(tmp_path / "notify")
    else:
        name = f"moe2-test-{uuid.uuid4().hex}"
        address, variable = "\0" + name, "@" + name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(5.0)
        yield sock, variable


def test_assignments_arrive_in_one_datagram(systemd: tuple[socket.socket, str]) -> None:
    """One line each, sd_notify(3)."""
    sock, variable = systemd
    Notifier({"NOTIFY_SOCKET": variable}).notify("READY=1", "STATUS=ready")
    assert sock.recv(1024) == b"READY=1\nSTATUS=ready"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_systemd_nothing_is_sent(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from a terminal there is nobody to tell: not even a socket is opened."""
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("opened a socket"))
    notifier = Notifier(environment)
    notifier.notify("READY=1")
    assert notifier.watchdog_s is None


def test_a_deaf_systemd_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Nobody listens at the address: no error."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).notify("READY=1")


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_read_from_the_environment(environment: dict[str, str], watchdog_s: float | None) -> None:
    """In seconds, and only where it is meant for this process."""
    assert Notifier(environment).watchdog_s == watchdog_s
