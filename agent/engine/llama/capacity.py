"""What this host could load now: its free memory, and what llama.cpp, in a process of its own, says that it knows."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import msgspec

from moe2.agent.engine.llama.memory import Capacity
from moe2.common.checksums import lowered
from moe2.common.errors import Moe2Error

ARGV = (sys.executable, "-m", "moe2.agent.engine.llama.architecture")
ASK_S = 60.0


def capacity_for(architecture: str) -> Capacity:
    """What llama.cpp says of an architecture, and what memory is free. Blocks. Raises `Moe2Error`."""
    try:
        with subprocess.Popen(  # noqa: S603 - our own module
            (*ARGV, architecture.replace("\0", "")), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                answer, _ = lowered(process).communicate(timeout=ASK_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return msgspec.json.decode(answer, type=Capacity)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        raise Moe2Error(
            f"llama.cpp could not be asked about the architecture {architecture!r}.",
            remedy="Install moe2[agent]; `moe2-agent doctor` tells more.",
        ) from error


def host_free_bytes() -> int | None:
    """Memory that the kernel says can be had without swapping; None where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
