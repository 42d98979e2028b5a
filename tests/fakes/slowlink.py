"""An agent whose link is slow, in a network namespace of its own: `unshare --net python -m tests.fakes.slowlink`.

The namespace's loopback is shaped by the kernel, tc-tbf(8) (a token bucket is in more kernels than netem, and the rate
is all that matters here). On it run a real agent with a fake expert, and the least hub that can give it a job. Nothing
outside the namespace is touched, and nothing of it stays.

Prints one JSON object: `frames`, the texts of each frame of tokens that reached the hub; `end`, the kind of the job's
end; `frames_after_end`. Exits with `CANNOT_SHAPE` and says why where the kernel or the rights do not allow it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from aiohttp import web

from moe2.agent.daemon import AgentDaemon
from moe2.agent.settings import AgentSettings
from moe2.common.link.messages import PROTOCOL_VERSION, JobDone, JobFailed, Report, Submit, Tokens, Welcome
from moe2.common.link.prompts import ChatMessage, ChatPrompt
from moe2.common.link.pump import Pump
from moe2.common.link.reports import ExpertState
from moe2.common.link.session import CoordinatorSession, JobMessage, MessageReceived, SessionEvent
from tests.fakes.fleet import FAKE_EXPERT

CANNOT_SHAPE = 77
LOOPBACK = (
    # A packet must fit into the bucket; loopback's own MTU of 64 KiB would not.
    ("ip", "link", "set", "lo", "mtu", "1500", "up"),
    ("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "32kbit", "burst", "4kb", "limit", "64kb"),
)


@dataclass
class Hub:
    """Welcomes one agent, gives it one job once its expert is ready, notes every message that comes back."""

    job: Submit
    received: list[JobMessage] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: list[JobMessage] = field(default_factory=list)
    _given: bool = False

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(compress=False)
        await websocket.prepare(request)
        welcome = Welcome(
            protocol=PROTOCOL_VERSION,
            coordinator_id="test",
            coordinator_version="0",
            heartbeat_s=30.0,
            report_s=30.0,
            max_frame_bytes=2**23,
        )
        session = CoordinatorSession(welcome, now_s=asyncio.get_running_loop().time(), handshake_s=30.0)
        await Pump(session, next_message=self._next, on_event=self._happened).run(websocket)
        return websocket

    def _next(self) -> JobMessage | None:
        return self._waiting.pop(0) if self._waiting else None

    def _happened(self, event: SessionEvent) -> None:
        if not isinstance(event, MessageReceived):
            return
        self.received.append(event.message)
        match event.message:
            case Report(experts=(expert,)) if expert.state is ExpertState.READY and not self._given:
                self._given = True
                self._waiting.append(self.job)
            case JobDone() | JobFailed():
                self.finished.set()


async def _run(root: Path, prompt: str, seconds_per_token: float) -> list[JobMessage]:
    """Everything the hub heard while the agent answered the prompt with as many tokens as it has words."""
    chat = ChatPrompt(messages=(ChatMessage(role="user", content=prompt),))
    hub = Hub(Submit(job_id="job", request_id="request", model="fake", prompt=chat, max_tokens=len(prompt.split())))
    app = web.Application()
    app.router.add_get("/v1/agents", hub.accept)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    (root / "token").write_text("a-test-token")
    (root / "fake.gguf").touch()
    settings = AgentSettings.model_validate(
        {
            "agent": {"name": "far", "state_dir": root, "socket": root / "agent.sock", "drain_s": 1.0},
            "coordinator": {"url": f"ws://127.0.0.1:{runner.addresses[0][1]}", "token_file": root / "token"},
            "models": [{"name": "fake", "path": root / "fake.gguf"}],
        }
    )
    agent = AgentDaemon(
        settings, environment={}, engine_argv=(*FAKE_EXPERT, "--seconds-per-token", str(seconds_per_token))
    )
    running = asyncio.create_task(agent.run())
    await hub.finished.wait()
    agent.stop()
    await running
    await runner.cleanup()
    return hub.received


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seconds-per-token", type=float, required=True)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    for command in LOOPBACK:
        try:
            subprocess.run(command, check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
            sys.exit(CANNOT_SHAPE)
    with tempfile.TemporaryDirectory() as root:
        received = asyncio.run(_run(Path(root), options.prompt, options.seconds_per_token))
    ends = [index for index, message in enumerate(received) if isinstance(message, JobDone | JobFailed)]
    frames = [
        [piece.text for job in message.jobs for piece in job.pieces]
        for message in received
        if isinstance(message, Tokens)
    ]
    late = sum(isinstance(message, Tokens) for message in received[ends[0] :])
    print(json.dumps({"frames": frames, "end": type(received[ends[0]]).__name__, "frames_after_end": late}))


if __name__ == "__main__":
    main()
