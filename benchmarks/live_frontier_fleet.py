"""The fleet of `benchmarks.live_frontier`: real processes on this host, simulated watts and pace, and who asks them."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.live_frontier_study import AUTO, NONE, Answer, Budget, Cost
from examples.demo.fleet import Fleet
from examples.demo.models import Model
from examples.demo.setup import HOST, Daemon, Setup, free_port, write_secret
from moe2.common.errors import Moe2Error
from moe2.common.link.reports import ExpertState
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.training.collect.asking import Asker
from moe2.coordinator.training.collect.outfile import Outfile
from moe2.coordinator.training.collect.questions import INSTRUCTIONS, Metric, Question, said, score
from moe2.coordinator.training.collect.survey import survey

READY_S = 300.0
POLL_S = 0.25
ATTEMPTS = 5
FIRST_PORT = 8180


def written(folder: Path, models: Sequence[Model]) -> Setup:
    """Write the configurations of a coordinator and of one agent per model; what they learned earlier stays."""
    for part in ("logs", "state"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    # A Unix socket's path is short; the folder's may be long.
    sockets = Path(tempfile.mkdtemp(prefix="moe2-frontier-"))
    token = folder / "token"
    write_secret(token, secrets.token_urlsafe(32))
    api_port = free_port(FIRST_PORT)
    agents_port = free_port(api_port + 1)
    coordinator = _daemon("coordinator", "coordinator", folder, sockets)
    link = {"token_file": str(token)}
    _write(
        coordinator.config,
        coordinator={"state_dir": str(folder / "state" / "coordinator"), "socket": str(coordinator.socket)},
        api={"host": HOST, "port": api_port},
        agents={"host": HOST, "port": agents_port, **link},
    )
    agents = []
    for model in models:
        agent = _daemon(model.name, "agent", folder, sockets)
        state_dir = str(folder / "state" / agent.name)
        _write(
            agent.config,
            agent={"name": model.name, "state_dir": state_dir, "socket": str(agent.socket)},
            coordinator={"url": f"ws://{HOST}:{agents_port}", **link},
            sensors={"profile": model.profile, "paced": True},
            models=[
                {
                    "name": model.name,
                    "path": str(model.path),
                    "context_tokens": 2048,
                    "slots": 2,
                    "threads": max(1, (os.cpu_count() or 1) // len(models)),
                }
            ],
        )
        agents.append(agent)
    return Setup(f"http://{HOST}:{api_port}", coordinator, tuple(agents), {})


def _daemon(name: str, program: str, folder: Path, sockets: Path) -> Daemon:
    return Daemon(name, program, folder / f"{name}.toml", sockets / f"{name}.sock", folder / "logs" / f"{name}.log")


def _write(path: Path, **content: Any) -> None:
    """Tables of plain values, or lists of such tables; a JSON string, number or boolean is one in TOML as well."""
    lines: list[str] = []
    for name, part in content.items():
        for table in part if isinstance(part, list) else [part]:
            lines += [f"[[{name}]]" if isinstance(part, list) else f"[{name}]"]
            lines += [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Client:
    """Asks the fleet over its API."""

    def __init__(self, http: aiohttp.ClientSession, *, max_tokens: int, is_plain: bool) -> None:
        """is_plain: ask by text completions in a plain frame, since a base model is in the fleet."""
        self._http = http
        self._max_tokens = max_tokens
        self._is_plain = is_plain

    async def ask(self, question: Question, way: str, budget: Budget, wishes: dict[str, Any]) -> Answer:
        """Ask a question. way: an expert's key, or what the answers of `wishes` are filed under.

        Raises Moe2Error where the answer is neither a completion nor a refusal for the budget.
        """
        route, body = self._body(question, way if "/" in way else "moe2", {**wishes, **budget.wishes})
        for attempt in range(ATTEMPTS):
            started_s = time.monotonic()
            async with self._http.post(route, json=body) as response:
                found = await response.json()
                if response.status in (429, 503) and attempt + 1 < ATTEMPTS:
                    await asyncio.sleep(1.0)
                    continue
                return self._answer(question, way, budget, response.status, found, time.monotonic() - started_s)
        raise AssertionError("the last attempt returns")

    def _answer(
        self, question: Question, way: str, budget: Budget, status: int, found: dict[str, Any], seconds: float
    ) -> Answer:
        if status == 422 and budget.key != NONE:
            return Answer(
                way=way,
                budget=budget.key,
                question=question.id,
                score=0.0,
                joules=0.0,
                seconds=seconds,
                refused=str(found["error"].get("code")),
            )
        if status != 200:
            raise Moe2Error(f"{way}, {budget.key}, {question.id}: HTTP {status}: {found['error']['message']}")
        choice, receipt = found["choices"][0], found["moe2"]
        text = str((choice["message"]["content"] if "message" in choice else choice["text"]) or "")
        return Answer(
            way=way,
            budget=budget.key,
            question=question.id,
            score=score(question.metric, text, question.gold, question.choices, asked=question.asked),
            joules=receipt["energy"]["joules"],
            seconds=receipt["seconds"]["total"],
            quality=receipt["energy"]["quality"],
            said=said(question.metric, text, question.choices, asked=question.asked),
        )

    def _body(self, question: Question, model: str, wishes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        fixed = {"model": model, "temperature": 0, "seed": 0, "max_tokens": self._max_tokens, "moe2": wishes}
        if self._is_plain:
            return "/v1/completions", {**fixed, "prompt": f"Question: {question.asked}\nAnswer:", "stop": ["\n"]}
        messages = [
            {"role": "system", "content": INSTRUCTIONS[question.metric]},
            {"role": "user", "content": question.asked},
        ]
        return "/v1/chat/completions", {**fixed, "messages": messages}

    async def learn(self, questions: Sequence[Question], out: Path) -> None:
        """Where held-out questions are asked as texts to continue, have all experts learned about in that form.

        `tune` would ask those with a chat template in a chat, and a gate would learn what nobody is asked. It takes
        what stands in the file, and asks what is missing.
        """
        if not self._is_plain:
            return
        asker = Asker(self._http, max_tokens=self._max_tokens)
        experts = [replace(expert, has_chat_template=False) for expert in await asker.live_experts()]
        await survey(asker, questions, experts, Outfile(out), concurrency=2, progress=lambda: None)

    async def costs(self, question: Question) -> dict[str, Cost]:
        """What the coordinator predicts that an answer to the question takes of each expert, by key."""
        _, body = self._body(question, "moe2", {"mode": "route"})
        async with self._http.post("/v1/moe2/plan", json=body) as response:
            found = await response.json()
            if response.status != 200:
                raise Moe2Error(f"The coordinator does not plan: {found['error']['message']}")
        rows = found["decision"]["experts"]
        return {
            row["expert"]: Cost((row["energy_j"] or {}).get("p95"), row["total_s"]["p95"])
            for row in rows
            if row["total_s"]
        }


def ways_of(question: Question, way: str) -> dict[str, Any]:
    """The fields of a request's `moe2` object for a way of asking, its budget aside."""
    if way != AUTO:
        return {"mode": "route"}
    # Options that are equal cannot be told apart as choices.
    has_choices = question.metric is Metric.CHOICE and len(set(question.choices)) == len(question.choices)
    return {"mode": "auto", **({"choices": list(question.choices)} if has_choices else {})}


@asynccontextmanager
async def serving(folder: Path, models: Sequence[Model], max_tokens: int) -> AsyncIterator[tuple[Setup, Client]]:
    """A running fleet with all experts ready, ended afterwards. Raises Moe2Error where it does not come up."""
    setup = written(folder, models)
    async with Fleet(setup) as fleet:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
        async with aiohttp.ClientSession(setup.api_url, timeout=timeout) as http:
            death = asyncio.create_task(fleet.first_death())
            try:
                status = await _ready(http, len(models), death)
            finally:
                death.cancel()
            templates = [expert.has_chat_template for agent in status.agents for expert in agent.experts]
            yield setup, Client(http, max_tokens=max_tokens, is_plain=False in templates)


async def _ready(http: aiohttp.ClientSession, count: int, death: asyncio.Task[Exception]) -> CoordinatorStatus:
    ends_s = time.monotonic() + READY_S
    while time.monotonic() < ends_s:
        if death.done():
            trouble = death.result()
            raise Moe2Error(f"{trouble}\n{getattr(trouble, 'log', '')}")
        try:
            async with http.get("/v1/moe2/fleet") as response:
                status = msgspec.json.decode(await response.read(), type=CoordinatorStatus)
        except (aiohttp.ClientConnectionError, msgspec.DecodeError):
            await asyncio.sleep(POLL_S)
            continue
        experts = [expert for agent in status.agents if agent.connected for expert in agent.experts]
        for expert in experts:
            if expert.state is ExpertState.FAILED:
                raise Moe2Error(f"{expert.model} cannot be loaded: {expert.last_error}")
        if sum(expert.state is ExpertState.READY for expert in experts) == count:
            return status
        await asyncio.sleep(POLL_S)
    raise Moe2Error(f"The fleet is not ready after {READY_S:.0f} s; its logs tell why.")


async def tuned(setup: Setup, questions: Path, *, max_tokens: int) -> int:
    """Run `moe2-coordinator tune` on the running fleet, and return its exit code: 0 where a gate is installed."""
    command = [sys.executable, "-m", "moe2.coordinator", "tune", "--config", str(setup.coordinator.config)]
    command += [
        "--questions",
        str(questions),
        "--max-tokens",
        str(max_tokens),
        "--concurrency",
        "2",
        "--even-if-behind",
    ]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    try:
        return await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
