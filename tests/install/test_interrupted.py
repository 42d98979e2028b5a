"""An installation that is ended half-way, or that two people begin."""

from __future__ import annotations

import signal

import pytest

from tests.install.fakehost import FakeHost


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_interrupted_ends_whole_and_can_be_done_again(host: FakeHost, sent: signal.Signals) -> None:
    """By Ctrl-C, by kill, by a connection that breaks: no compiler goes on, and the next run finds no obstacle."""
    with host.installing("coordinator") as (process, pip):
        process.send_signal(sent)
        assert pip.read() == ""
        assert process.wait() == 130
    again = host.install("coordinator")
    assert again.returncode == 0, again.stderr
    assert "Removing an unfinished release" in again.stdout


def test_of_two_at_once_the_second_is_told(host: FakeHost) -> None:
    """It changes nothing."""
    with host.installing("coordinator"):
        second = host.install("coordinator")
    assert second.returncode == 1
    assert "another install.sh is at work on this host" in second.stderr
