"""Asks llama.cpp, in a process of its own, what this host could load now."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from moe2.agent.engine.memory import Capacity
from moe2.common.errors import Moe2Error

ARGV = (sys.executable, "-m", "moe2.agent.engine.architecture")
ASK_S = 60.0


def capacity_for(architecture: str) -> Capacity:
    """What llama.cpp says of an architecture, and what memory is free. Blocks. Raises `Moe2Error`."""
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            (*ARGV, architecture.replace("\0", "")), capture_output=True, timeout=ASK_S, check=False
        )
        return msgspec.json.decode(done.stdout, type=Capacity)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        raise Moe2Error(
            f"llama.cpp could not be asked about the architecture {architecture!r}.",
            remedy="Install moe2[agent]; `moe2-agent doctor` tells more.",
        ) from error
