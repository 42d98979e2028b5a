"""An agent in a process of its own, with a fake expert:
`python -m tests.fakes.agentprocess ROOT NAME URL PROFILE [...]`.

The token is read from ROOT/NAME.token. PROFILE is a simulated host's, "nvml" for the boards of this machine, or "-" for
a host without sensors. What follows are options of the fake expert.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from moe2.agent.daemon import AgentDaemon
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.energy.profiles import find_profile
from moe2.agent.settings import AgentSettings
from tests.fakes.coordinatorprocess import code_of
from tests.fakes.fleet import FAKE_EXPERT

CLOCK_VARIABLE = "MOE2_TEST_CLOCK_AHEAD_S"
SLOTS_VARIABLE = "MOE2_TEST_SLOTS"
STUCK_VARIABLE = "MOE2_TEST_STUCK_S"
UNLOADS_VARIABLE = "MOE2_TEST_UNLOADS"
TAKES_VARIABLE = "MOE2_TEST_TAKES_MODELS"
SLEEPS_VARIABLE = "MOE2_TEST_SLEEPS_UNTIL"


class SleepyHost:
    """A host that is suspended by a word alone, and that a file wakes: the n-th byte in it ends the n-th sleep."""

    def __init__(self, woken: Path) -> None:
        self._woken = woken
        self._before = self._bytes()

    def _bytes(self) -> int:
        return self._woken.stat().st_size if self._woken.exists() else 0

    async def fault(self) -> str | None:
        return None

    async def suspend(self) -> None:
        return

    def suspended_s(self) -> float:
        return 3600.0 * (self._bytes() - self._before)


@asynccontextmanager
async def agent_process(
    root: Path,
    name: str,
    url: str,
    *,
    token: str,
    expert: Sequence[str] = (),
    profile: str = "-",
    ahead_s: float = 0.0,
    slots: int = 1,
    stuck_s: float = 60.0,
    sleeps_until: Path | None = None,
    unloads: bool = False,
    release: Path | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running agent process; killed in the end, if it still lives.

    ahead_s: how far its host's wall clock is ahead of everybody's. slots: of its expert. stuck_s: its
    `engine.stuck_s`. sleeps_until: the host may be suspended, and each byte more in this file wakes it. unloads: its
    expert may be unloaded. release: the folder of another release's code; None for this one.
    """
    (root / f"{name}.token").write_text(token)
    argv = (sys.executable, "-m", "tests.fakes.agentprocess", str(root), name, url, profile, *expert)
    # Its log is only of interest to whoever looks for a failure's cause.
    with (root / f"{name}.log").open("ab") as log:
        environment = (
            code_of(release)
            | {CLOCK_VARIABLE: str(ahead_s), SLOTS_VARIABLE: str(slots)}
            | {STUCK_VARIABLE: str(stuck_s)}
        )
        if unloads:
            environment[UNLOADS_VARIABLE] = "1"
        if sleeps_until is not None:
            environment[SLEEPS_VARIABLE] = str(sleeps_until)
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log, env=environment)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


def _set_wall_clock(ahead_s: float) -> None:
    """The daemon's modules ask for it as `time.time()`."""
    true_time = time.time
    time.time = lambda: true_time() + ahead_s


def main() -> None:
    _set_wall_clock(float(os.environ.get(CLOCK_VARIABLE, "0")))
    root, name, url, profile, *options = sys.argv[1:]
    state = Path(root)
    gguf = state / "fake.gguf"
    gguf.touch()
    woken = os.environ.get(SLEEPS_VARIABLE)
    settings = AgentSettings.model_validate(
        {
            "agent": {
                "name": name,
                "state_dir": state / name,
                "socket": state / f"{name}.sock",
                "drain_s": 5.0,
                "allow_unload": bool(os.environ.get(UNLOADS_VARIABLE)),
                "allow_suspend": woken is not None,
            },
            "measuring": {"enabled": False},
            "models_from": {"coordinator": bool(os.environ.get(TAKES_VARIABLE))},
            "coordinator": {
                "url": url,
                "token_file": state / f"{name}.token",
                "reconnect_first_s": 0.02,
                "reconnect_most_s": 0.1,
            },
            "engine": {
                "restart_first_s": 0.02,
                "restart_most_s": 0.1,
                "stuck_s": float(os.environ.get(STUCK_VARIABLE, "60")),
            },
            "models": [{"name": "fake", "path": gguf, "slots": int(os.environ.get(SLOTS_VARIABLE, "1"))}],
        }
    )
    sensors = SensorSettings(
        root=state / "no-sensors",
        simulated=None if profile in ("-", "nvml") else find_profile(profile),
        families=("nvml",) if profile == "nvml" else ("ina3221", "rapl"),
    )
    agent = AgentDaemon(
        settings,
        environment={},
        engine_argv=(*FAKE_EXPERT, *options),
        sensors=sensors,
        control=SleepyHost(Path(woken)) if woken is not None else None,
    )
    asyncio.run(agent.run())


if __name__ == "__main__":
    main()
