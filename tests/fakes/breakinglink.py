"""A push over a link that is slow and breaks: `unshare --net python -m tests.fakes.breakinglink ROOT FILE`.

In a network namespace of its own, the loopback is shaped by tc-tbf(8); a coordinator and two agents are on it. The link
goes down twice while the file travels to both, for longer than the agents' heartbeats, so that the kernel's own TCP and
both sides' timeouts do what they do in the field. Nothing outside the namespace is touched.

Prints one JSON object: `states` by host, `breaks`, and whether the files that arrived are `same`. Exits with
`CANNOT_SHAPE` and says why where the kernel or the rights do not allow it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import structlog

from moe2.coordinator.http.paths import PUSHES_PATH
from tests.fakes.fleet import Fleet, fleet

CANNOT_SHAPE = 77
HOSTS = ("one", "two")
LOOPBACK = (
    ("ip", "link", "set", "lo", "mtu", "1500", "up"),
    ("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "200mbit", "burst", "64kb", "limit", "256kb"),
)
BREAK_AT = (0.2, 0.6)
"""Shares of both files that have gone out when the link breaks."""


async def run(root: Path, file: Path, content: bytes) -> dict[str, Any]:
    """The push, to its end."""
    async with fleet(
        root,
        agents=(),
        push={"port": 0},
        listener={"heartbeat_s": 0.2, "stale_s": 5.0},
    ) as running:
        for host in HOSTS:
            await running.start_agent(host, models_from={"coordinator": True})
        await running.until_status(lambda status: sum(bool(_free(row)) for row in status.agents) == len(HOSTS))
        await running.tell(PUSHES_PATH, path=str(file), hosts=HOSTS)
        breaks = 0
        for share in BREAK_AT:
            await running.until_status(lambda _, share=share: _gone_out(running) >= share * len(HOSTS) * len(content))  # type: ignore[misc]
            _link("down")
            breaks += 1
            await running.until_status(lambda status: not any(row.connected for row in status.agents))
            _link("up")
        await running.until_status(lambda status: all(row.state == "done" for row in status.pushes))
        return {
            "states": {row.host: row.state for row in running.coordinator.status().pushes},
            "breaks": breaks,
            "same": [(root / host / "models" / file.name).read_bytes() == content for host in HOSTS],
        }


def _free(row: Any) -> int | None:
    return row.models.free_bytes if row.models else None


def _gone_out(running: Fleet) -> int:
    return sum(row.done_bytes for row in running.coordinator.status().pushes)


def _link(state: str) -> None:
    subprocess.run(("ip", "link", "set", "lo", state), check=True)


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    for command in LOOPBACK:
        try:
            subprocess.run(command, check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
            sys.exit(CANNOT_SHAPE)
    root, file = map(Path, sys.argv[1:])
    print(json.dumps(asyncio.run(run(root, file, file.read_bytes()))))


if __name__ == "__main__":
    main()
