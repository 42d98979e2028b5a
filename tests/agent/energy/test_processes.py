"""Whose processes are on a device."""

from __future__ import annotations

import os
import subprocess
import sys

from moe2.agent.energy.processes import strangers


def test_this_agent_and_its_engines_are_no_strangers() -> None:
    """The process itself, its child, and its child's child."""
    script = "import subprocess, sys; p = subprocess.Popen(['cat'], stdin=0); print(p.pid, flush=True); p.wait()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    assert strangers([os.getpid(), child.pid, grandchild]) == ()
    child.communicate("")


def test_another_program_is_named() -> None:
    """With its number, for a person to find it."""
    (told,) = strangers([1])
    assert told.endswith("(1)") or told == "process 1"


def test_a_process_that_has_ended_is_nobody() -> None:
    """NVML's list can be older than the process's end, or of another PID namespace."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert strangers([ended.pid, 2**31 - 1, 2**32 - 1, 2**40]) == ()


def test_a_process_without_a_number_is_nobody() -> None:
    """In a container NVML calls every process outside 0; to `kill` that is the caller's own group, and not "alive"."""
    assert strangers([0]) == ()
