"""What this host is."""

from __future__ import annotations

import os
import platform
import re
import socket
from pathlib import Path

import msgspec

from moe2.agent.energy.conditions import read_power_mode
from moe2.agent.energy.nvml import board_names
from moe2.agent.energy.profiles import Profile
from moe2.agent.energy.sysfs import text_or_none
from moe2.common.link.reports import HostFacts


def detect_host(root: Path = Path("/"), *, simulated: Profile | None = None, ask_driver: bool = True) -> HostFacts:
    """Facts of the host below `root`; what it does not tell is None. Blocking: call it from a thread.

    simulated: a host whose board, accelerator and power mode are shown instead, marked as simulated. ask_driver: for
    the names of NVIDIA's boards, which a driver that hangs never tells.
    """
    facts = HostFacts(
        hostname=socket.gethostname(),
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu_model=_cpu_model(root),
        cpu_count=os.cpu_count(),
        memory_bytes=_memory_bytes(root),
        accelerator=_accelerator(root, board_names() if ask_driver else ()),
        board=_board(root),
        power_mode=read_power_mode(root),
    )
    if simulated is None:
        return facts
    return msgspec.structs.replace(
        facts,
        board=f"{simulated.board} (simulated)",
        accelerator=f"{simulated.accelerator} (simulated)",
        power_mode=simulated.marked_power_mode,
    )


def _cpu_model(root: Path) -> str | None:
    named = re.search(r"^model name\s*:\s*(.+)$", text_or_none(root / "proc/cpuinfo") or "", re.MULTILINE)
    return named[1].strip() if named else None


def _memory_bytes(root: Path) -> int | None:
    total = re.search(r"^MemTotal:\s*(\d+) kB$", text_or_none(root / "proc/meminfo") or "", re.MULTILINE)
    return int(total[1]) * 1024 if total else None


def _board(root: Path) -> str | None:
    device_tree = text_or_none(root / "proc/device-tree/model")
    if device_tree:
        return device_tree
    vendor = text_or_none(root / "sys/class/dmi/id/sys_vendor")
    product = text_or_none(root / "sys/class/dmi/id/product_name")
    return " ".join(part for part in (vendor, product) if part) or None


def _accelerator(root: Path, boards: tuple[str, ...]) -> str | None:
    if boards:
        return ", ".join(boards)
    compatible = text_or_none(root / "proc/device-tree/compatible") or ""
    tegra = re.search(r"nvidia,(tegra\d+)", compatible)
    return f"NVIDIA GPU of {tegra[1]}, integrated" if tegra else None
