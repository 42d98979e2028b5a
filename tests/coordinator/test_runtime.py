"""The coordinator's process: the clock of its event loop, its limit of open files, its listeners' certificates."""

from __future__ import annotations

import asyncio
import gc
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe2.common.health import Severity
from moe2.coordinator.runtime import EventLoop, ListenerTls, allow_open_files, collect_seldom, share_processor
from moe2.coordinator.settings import CoordinatorSettings
from tests.fakes.certificates import Authority

FREED = """
import resource
from moe2.coordinator.runtime import give_back_memory

def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

give_back_memory()
largest = bytearray(16 << 20)
del largest
blocks, between = [], []
for _ in range(40):
    blocks.append(bytearray(256 << 10))
    between.append(bytearray(2000))
before = resident_bytes()
blocks.clear()
print(before - resident_bytes())
"""


def test_large_blocks_leave_the_process_when_they_are_freed() -> None:
    """Also where larger ones were freed before, and smaller ones lie between them: by itself glibc keeps all then."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("Only glibc has bounds for what it keeps.")
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, check=True, text=True)
    assert int(done.stdout) > 9 << 20


def test_its_clock_moves_within_one_turn() -> None:
    """The event loop's clock moves within one turn of the loop."""

    async def look() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        return loop.time(), loop.time()

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        before_s, after_s = runner.run(look())
    assert after_s - before_s > 0


def test_its_timers_follow_its_clock() -> None:
    """A timer set by the event loop's clock is not due before its time."""

    async def look() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        due: asyncio.Future[float] = loop.create_future()
        when_s = loop.time() + 0.01
        loop.call_at(when_s, lambda: due.set_result(loop.time()))
        return when_s, await due

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        when_s, at_s = runner.run(look())
    # libuv's timers count whole milliseconds.
    assert at_s >= when_s - 1e-3


def test_the_soft_limit_becomes_the_hard_one() -> None:
    """The soft limit of open files becomes the hard one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        assert allow_open_files() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_thread_that_computes_gives_way_soon() -> None:
    """The event loop does not wait for Python's usual 5 ms."""
    before = sys.getswitchinterval()
    try:
        share_processor()
        assert sys.getswitchinterval() <= 0.001
    finally:
        sys.setswitchinterval(before)


def warned(**api: object) -> list[str]:
    warnings = ListenerTls(CoordinatorSettings.model_validate({"api": api})).warnings(0.0)
    assert all(warning.severity is Severity.NOTICE and "[api.tls]" in warning.remedy for warning in warnings)
    return [warning.code for warning in warnings]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "hub.example"])
def test_keys_that_pass_in_the_clear_are_a_named_warning(host: str) -> None:
    """A listener with keys and without TLS on a public address is warned of, with the remedy."""
    assert warned(host=host, keys="required") == ["keys_plaintext"]


def test_prompts_that_pass_in_the_clear_are_another_one() -> None:
    """A listener without keys and TLS on a public address has a warning of its own."""
    assert warned(host="0.0.0.0", allow_public_without_keys=True) == ["api_plaintext"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    """A listener on loopback is not warned of, with keys or without."""
    assert warned(host=host, keys="required") == warned(host=host) == []


def test_with_tls_nothing_passes_in_the_clear(tmp_path: Path) -> None:
    """A listener with TLS is not warned of on a public address."""
    assert warned(host="0.0.0.0", keys="required", tls=Authority(tmp_path).issue()) == []


@pytest.fixture
def collector() -> Iterator[None]:
    """The garbage collector of the tests' process, as it was before."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_a_look_at_all_hosts_starts_no_collection() -> None:
    """Thousands of objects that are made at once, as for all hosts of a large fleet, do not have garbage collected."""
    begun: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        begun.append(info["generation"])

    collect_seldom()
    gc.callbacks.append(note)
    try:
        rows = [[number] for number in range(5000)]
    finally:
        gc.callbacks.remove(note)
    assert len(rows) == 5000
    assert begun == []


@pytest.mark.usefixtures("collector")
def test_cycles_are_still_collected() -> None:
    """Objects that refer to each other are found by the garbage collector although it runs seldom."""
    collect_seldom()
    n_before = len(gc.get_objects())
    for _ in range(30_000):
        cycle: list[object] = []
        cycle.append(cycle)
    assert len(gc.get_objects()) - n_before < 15_000
