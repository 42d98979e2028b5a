"""A coordinator in a process of its own, the real command, that can be killed and started again at the same address."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.fakes.fleet import POLL_S


class CoordinatorProcess:
    """Use as an async context manager. Its ports stay the same over restarts.

    api, agents: more lines of [api] and [agents]. module: what is run in place of the command. release: the folder of
    another release's code, from the next start on; None for this one.
    """

    def __init__(
        self,
        root: Path,
        *,
        token: str,
        drain_s: float = 0.2,
        api: str = "",
        agents: str = "",
        module: str = "moe2.coordinator",
        release: Path | None = None,
    ) -> None:
        self._root = root
        self._module = module
        self.release = release
        self._reserved = _reserved_port(), _reserved_port()
        self._api_port, self._agents_port = (held.getsockname()[1] for held in self._reserved)
        (root / "coordinator.token").write_text(token)
        config = f"""
            [coordinator]
            state_dir = {_toml(root)}
            socket = {_toml(root / "coordinator.sock")}
            drain_s = {drain_s}
            [api]
            port = {self._api_port}
            {api}
            [agents]
            port = {self._agents_port}
            token_file = {_toml(root / "coordinator.token")}
            report_s = 0.5
            {agents}
        """
        self._config = root / "coordinator.toml"
        self._config.write_text("\n".join(line.strip() for line in config.splitlines()))
        self._process: asyncio.subprocess.Process | None = None
        self.api_url = f"http://127.0.0.1:{self._api_port}"
        self.agents_url = f"ws://127.0.0.1:{self._agents_port}"

    async def start(self) -> None:
        """Returns once the API takes connections."""
        argv = (sys.executable, "-m", self._module, "run", "--config", str(self._config))
        with (self._root / "coordinator.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdout=log, stderr=log, env=code_of(self.release)
            )
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._api_port)
                writer.close()
                await writer.wait_closed()
                return
            code = self._process.returncode
            assert code is None, f"{ended(code)}; its log: {(self._root / 'coordinator.log').read_text() or 'empty'}"
            await asyncio.sleep(POLL_S)

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process
        return self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, to whoever still lives."""
        assert self._process
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        assert self._process
        self._process.send_signal(number)
        await self._process.wait()

    async def __aenter__(self) -> CoordinatorProcess:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process and self._process.returncode is None:
            await self.end(signal.SIGKILL)
        for held in self._reserved:
            held.close()


def ended(code: int) -> str:
    """How a process ended, by its exit status."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with status {code}"


def code_of(release: Path | None) -> dict[str, str]:
    """The environment of a process that runs the code in a folder; None for this code."""
    if release is None:
        return dict(os.environ)
    # Without the working directory, which has this code.
    return os.environ | {"PYTHONPATH": f"{release / 'dev'}:{release}", "PYTHONSAFEPATH": "1"}


def _reserved_port() -> socket.socket:
    """A socket that holds a port without listening: the system gives it to nobody else, and who asks for
    SO_REUSEADDR, as the coordinator does, may listen there.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _toml(path: Path) -> str:
    return json.dumps(str(path))
