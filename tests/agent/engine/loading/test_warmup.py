"""Models that load together are measured one at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from moe2.agent.engine.loading.warmup import measured_alone


class Time:
    """A clock that only `sleep` moves. on_sleep: what else happens then."""

    def __init__(self, on_sleep: object = None) -> None:
        self.now_s = 0.0
        self.slept = 0
        self.on_sleep = on_sleep

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept += 1
        if callable(self.on_sleep):
            self.on_sleep()


def test_one_waits_until_the_other_is_measured(tmp_path: Path) -> None:
    """It goes on as soon as the other one has ended, and holds others up itself."""
    path = tmp_path / "lock"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        time = Time(on_sleep=lambda: fcntl.flock(other, fcntl.LOCK_UN))
        with measured_alone(str(path), clock=time.clock, sleep=time.sleep):
            assert time.slept == 1
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_one_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """A doubtful measurement is better than a model that never comes."""
    path = tmp_path / "lock"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        time = Time()
        with measured_alone(str(path), clock=time.clock, sleep=time.sleep):
            assert time.now_s == pytest.approx(60, abs=1)


@pytest.mark.parametrize("path", [None, "/nonexistent/folder/lock"])
def test_without_a_file_nobody_is_waited_for(path: str | None) -> None:
    """A model that is loaded by itself, and a folder that cannot be written to."""
    time = Time()
    with measured_alone(path, clock=time.clock, sleep=time.sleep):
        assert time.slept == 0
