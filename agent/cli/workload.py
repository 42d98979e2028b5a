"""Measures one expert on a short fixed workload, with the same core, accounts and models that serve requests.

The workload: prompts of 32, 128 and 512 tokens (as far as the context holds them) with 32 decoded tokens each, by one
request at a time and then by 2, 4, 8... at once, last by as many as the expert has slots. Prompts differ from each
other from the first word on, so that no prefix cache shortens them. Before it, ten idle seconds give the idle power.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from statistics import median

import msgspec

from moe2.agent.energy.monitor import HostMonitor
from moe2.agent.engine import protocol
from moe2.agent.engine.process import EngineProcess, Exit
from moe2.agent.jobs import core
from moe2.agent.jobs.effects import SendToCoordinator, SendToEngine, SettleEnergy
from moe2.agent.jobs.events import EnergySettled, EngineExited, EngineSpoke, Event, JobSubmitted, PowerModeChanged
from moe2.agent.learning.store import StoredProfile, setup_of
from moe2.agent.models.spec import spec_of
from moe2.agent.settings import EngineSection, ModelSection
from moe2.common.backoff import Backoff
from moe2.common.energy import NEVER_RAN, Energy, total
from moe2.common.errors import Moe2Error
from moe2.common.generation import Sampling
from moe2.common.link.messages import JobDone, JobFailed, Submit, Tokens
from moe2.common.link.prompts import TextPrompt

DECODED_TOKENS = 32
PROMPT_TOKENS = (32, 128, 512)
IDLE_S = 14.0
"""Three seconds to settle after loading and ten to measure, and one to spare."""
_SETTLE_EVERY_S = 0.02
_WORDS = ("river", "stone", "lamp", "cloud", "seven", "paper", "green", "door", "music", "winter", "table", "bread")


@dataclass(frozen=True, slots=True)
class Burst:
    """A burst of requests of one size that run at once."""

    prompt_tokens: int
    concurrency: int
    decoded_tokens: int = DECODED_TOKENS


class BurstResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one burst took: medians over its requests, and the rate of all together.

    prefill_tokens_per_s: of prompt tokens that were not found in a cache. energy: of all its requests together.
    """

    prompt_tokens: int
    concurrency: int
    ttft_s: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    together_tokens_per_s: float
    decoded_tokens: int
    energy: Energy


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    bursts: tuple[BurstResult, ...]
    profile: StoredProfile


Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, 0..1."""


def workload(slots: int, context_tokens: int, *, kv_unified: bool = True) -> tuple[Burst, ...]:
    """The bursts for an expert of so many slots, which share so much context, or without `kv_unified` have so much
    each."""
    concurrencies = [1, 1]
    while concurrencies[-1] * 2 <= slots:
        concurrencies.append(concurrencies[-1] * 2)
    if concurrencies[-1] < slots:
        concurrencies.append(slots)
    return tuple(
        Burst(prompt_tokens, concurrency)
        for concurrency in concurrencies
        for prompt_tokens in PROMPT_TOKENS
        if (concurrency if kv_unified else 1) * (2 * prompt_tokens + DECODED_TOKENS) <= context_tokens
    )


class ExpertBench:
    """An expert with its engine, which the benchmark has for itself."""

    def __init__(
        self, section: ModelSection, engine: EngineSection, monitor: HostMonitor, engine_argv: Sequence[str]
    ) -> None:
        self._section = section
        self._monitor = monitor
        self._core = core.AgentCore((section,))
        self._random = Random(1)
        self._ready = asyncio.Event()
        self._failure: Moe2Error | None = None
        self._answers: dict[str, asyncio.Future[JobDone | JobFailed]] = {}
        self._on_progress: Progress = lambda _what, _share: None
        self._engine = EngineProcess(
            section.name,
            spec_of(section, monitor.pace),
            engine_argv,
            backoff=Backoff(first_s=engine.restart_first_s, most_s=engine.restart_most_s, random=self._random),
            load_timeout_s=engine.load_timeout_s,
            on_event=self._spoke,
            on_exit=self._exited,
        )

    async def run(self, on_progress: Progress, *, idle_s: float = IDLE_S) -> BenchResult:
        """Load, idle, serve the workload. Raises Moe2Error if the model cannot be loaded or its engine dies.

        idle_s: how long to measure idle power; it is left out where there is no sensor.
        """
        self._on_progress = on_progress
        self._core.handle(PowerModeChanged(self._monitor.power_mode), time.monotonic())
        async with self._running():
            await self._ready.wait()
            self._raise_failure()
            if self._monitor.sampler.channels:
                await self._idle(idle_s)
            context_tokens = self._core.experts[self._section.name].context_tokens
            bursts = workload(self._section.slots, context_tokens, kv_unified=self._section.kv_unified)
            results = []
            for number, burst in enumerate(bursts):
                on_progress("serving", number / len(bursts))
                results.append(await self._serve(burst))
            on_progress("serving", 1.0)
        return BenchResult(bursts=tuple(results), profile=self._profile())

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(self._engine.run()),
            asyncio.create_task(self._monitor.run()),
            asyncio.create_task(self._settle()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def _idle(self, idle_s: float) -> None:
        steps = max(1, round(idle_s * 2))
        for step in range(steps):
            self._on_progress("measuring idle power", step / steps)
            await asyncio.sleep(idle_s / steps)
        self._on_progress("measuring idle power", 1.0)

    async def _serve(self, burst: Burst) -> BurstResult:
        began_s = time.monotonic()
        answers = await asyncio.gather(*(self._request(burst, number) for number in range(burst.concurrency)))
        seconds = time.monotonic() - began_s
        done = [answer.usage for answer in answers]
        firsts = [one.prefill_s + (one.queue_s or 0.0) for one in done if one.prefill_s is not None]
        rates = [(one.decoded_tokens - 1) / one.decode_s for one in done if one.decode_s and one.decoded_tokens > 1]
        prefills = [
            (one.prompt_tokens - one.cached_tokens) / one.prefill_s
            for one in done
            if one.prompt_tokens and one.prefill_s
        ]
        decoded = sum(one.decoded_tokens for one in done)
        return BurstResult(
            prompt_tokens=burst.prompt_tokens,
            concurrency=burst.concurrency,
            ttft_s=median(firsts) if firsts else None,
            prefill_tokens_per_s=median(prefills) if prefills else None,
            decode_tokens_per_s=median(rates) if rates else None,
            together_tokens_per_s=decoded / seconds,
            decoded_tokens=decoded,
            energy=total(one.energy for one in done),
        )

    async def _request(self, burst: Burst, number: int) -> JobDone:
        job_id = f"bench-{burst.prompt_tokens}-{burst.concurrency}-{number}-{self._random.randrange(10**9)}"
        # About a token per word; a little less, so that a full context is not exceeded.
        words = [str(self._random.randrange(1000)), *self._random.choices(_WORDS, k=max(1, burst.prompt_tokens - 4))]
        answer: asyncio.Future[JobDone | JobFailed] = asyncio.get_running_loop().create_future()
        self._answers[job_id] = answer
        submit = Submit(
            job_id=job_id,
            request_id=job_id,
            model=self._section.name,
            prompt=TextPrompt(text=" ".join(words)),
            sampling=Sampling(temperature=1.0, seed=number),
            max_tokens=burst.decoded_tokens,
        )
        self._dispatch(JobSubmitted(submit))
        ended = await answer
        if isinstance(ended, JobFailed):
            raise Moe2Error(f"A request of the workload failed: {ended.message}")
        return ended

    async def _settle(self) -> None:
        while True:
            for job_id, energy in self._monitor.settle().items():
                self._dispatch(EnergySettled(job_id, energy))
            await asyncio.sleep(_SETTLE_EVERY_S)

    def _spoke(self, model: str, event: protocol.Event) -> None:
        now_s = time.monotonic()
        account = self._monitor.account
        match event:
            case protocol.Started(job_id=job_id, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens):
                account.request_started(job_id, prompt_tokens - cached_tokens, now_s)
            case Tokens(jobs=jobs):
                for job in jobs:
                    account.tokens_decoded(job.job_id, len(job.pieces), now_s)
            case protocol.Loading(progress=progress):
                self._on_progress("loading", progress)
            case protocol.LoadFailed(message=message):
                self._failure = Moe2Error(message)
        self._dispatch(EngineSpoke(model, event))
        if isinstance(event, protocol.Loaded):
            self._on_progress("loading", 1.0)
            self._monitor.models_loaded(frozenset({model}))
            self._ready.set()

    def _exited(self, model: str, ended: Exit) -> None:
        self._failure = self._failure or Moe2Error(f"The engine of {model} died: {ended.reason}")
        self._dispatch(EngineExited(model, ended.reason, ended.permanent))
        self._ready.set()

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    def _dispatch(self, event: Event) -> None:
        for effect in self._core.handle(event, time.monotonic()):
            match effect:
                case SendToEngine(command=command):
                    self._engine.send(command)
                case SendToCoordinator(message=JobDone() | JobFailed() as ended):
                    if answer := self._answers.pop(ended.job_id, None):
                        answer.set_result(ended)
                case SettleEnergy(job_id=job_id):
                    if not self._monitor.account.request_ended(job_id, time.monotonic()):
                        self._dispatch(EnergySettled(job_id, NEVER_RAN))

    def _profile(self) -> StoredProfile:
        costs = self._core.experts[self._section.name].costs
        return StoredProfile(
            model=self._section.name,
            setup=setup_of(self._section),
            hostname=socket.gethostname(),
            measured_at_unix_s=time.time(),
            power_mode=self._monitor.power_mode,
            latency=costs.latency,
            energy=costs.energy,
        )
