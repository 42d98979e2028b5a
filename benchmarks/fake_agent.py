"""A fake agent for benchmarks: a process with the real agent's link, and experts that take no time.

It serves two models over every coordinator it is pointed at:

- `instant` answers a job at once: start, all tokens, end;
- `paced` sends one token per `TOKEN_INTERVAL_S` and job. Its jobs sit on decoders of `PACED_SLOTS` slots each, which
  tick at phases of their own, so one frame carries a decoding step's tokens as it does from llama.cpp.

An answer has as many tokens as the job allows (`max_tokens`), each of them `TOKEN_TEXT`.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from pathlib import Path
from random import Random

import uvloop

from moe2.agent.link.link import Link
from moe2.common.backoff import Backoff
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    CancelJob,
    Hello,
    JobDone,
    JobPieces,
    JobStarted,
    JobUsage,
    Report,
    Submit,
    TokenPiece,
    Welcome,
)
from moe2.common.link.reports import ExpertReport, ExpertState, HostFacts, Performance
from moe2.common.link.session import JobMessage
from moe2.common.logs import configure_logging
from moe2.common.secretfile import read_secret

INSTANT, PACED = "instant", "paced"
TOKEN_TEXT = " token"
TOKEN_INTERVAL_S = 0.05
PACED_SLOTS = 16
DEFAULT_TOKENS = 16
EXPERT_SLOTS = 4096
PROMPT_TOKENS = 32
# The golden ratio's fractional part spreads any number of decoders evenly over one interval.
PHASE_STEP = 0.618


class Decoder:
    """Up to `PACED_SLOTS` jobs that advance by one token together, at fixed times."""

    def __init__(self, link: Link, index: int) -> None:
        self._link = link
        self._left: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._next_s = self._loop.time() + (index * PHASE_STEP % 1.0) * TOKEN_INTERVAL_S
        self._timer: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        return len(self._left) < PACED_SLOTS

    def add(self, job_id: str, n_tokens: int) -> None:
        self._left[job_id] = n_tokens
        if self._timer is None:
            while self._next_s <= self._loop.time():
                self._next_s += TOKEN_INTERVAL_S
            self._timer = self._loop.call_at(self._next_s, self._tick)

    def remove(self, job_id: str) -> bool:
        return self._left.pop(job_id, None) is not None

    def _tick(self) -> None:
        self._timer = None
        self._link.send_tokens(tuple(JobPieces(job_id, (TokenPiece(TOKEN_TEXT),)) for job_id in self._left))
        for job_id in [job_id for job_id, left in self._left.items() if left == 1]:
            del self._left[job_id]
            self._link.send(_done(job_id, "length"))
        for job_id in self._left:
            self._left[job_id] -= 1
        if self._left:
            # From the planned time, not from now: a late tick must not slow the pace down.
            self._next_s += TOKEN_INTERVAL_S
            self._timer = self._loop.call_at(self._next_s, self._tick)


@dataclass(frozen=True)
class TokenOnly:
    """Shows the token each time: nothing of a fake agent outlives it."""

    token: str

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def enrolled(self) -> None:
        return

    def unknown(self) -> bool:
        return False


@dataclass(frozen=True)
class Timing:
    connect_timeout_s: float = 10.0
    refused_retry_s: float = 60.0


class FakeAgent:
    """One link to one coordinator, and what answers on it."""

    def __init__(self, url: str, token: str) -> None:
        hello = Hello(
            protocol_min=PROTOCOL_VERSION,
            protocol_max=PROTOCOL_VERSION,
            agent_id="agent-fake",
            agent_name="fake",
            agent_version="0",
        )
        self._decoders: list[Decoder] = []
        self._report_s = 5.0
        self._seq = 0
        self._link = Link(
            url=url,
            credentials=TokenOnly(token),
            tls=lambda: None,
            hello=hello,
            timing=Timing(),
            backoff=Backoff(first_s=0.05, most_s=0.5, random=Random()),
            on_opened=self._opened,
            on_message=self._received,
            on_lost=self._decoders.clear,
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run())
            tasks.create_task(self._report_steadily())

    def _opened(self, welcome: Welcome) -> None:
        self._report_s = welcome.report_s
        self._report()

    async def _report_steadily(self) -> None:
        while True:
            await asyncio.sleep(self._report_s)
            self._report()

    def _report(self) -> None:
        self._seq += 1
        experts = tuple(
            ExpertReport(
                model=model,
                state=ExpertState.READY,
                context_tokens=8192,
                slots=EXPERT_SLOTS,
                has_chat_template=True,
                performance=Performance(prefill_tokens_per_s=1e6, decode_tokens_per_s=1e6, ttft_s=0.0, n_requests=1),
            )
            for model in (INSTANT, PACED)
        )
        host = HostFacts(hostname="fake", system="fake", architecture="fake")
        self._link.send(Report(seq=self._seq, host=host, experts=experts))

    def _received(self, message: JobMessage) -> None:
        match message:
            case Submit(job_id=job_id, model=model, max_tokens=max_tokens):
                self._link.send(JobStarted(job_id=job_id, prompt_tokens=PROMPT_TOKENS, queue_s=0.0))
                n_tokens = max_tokens or DEFAULT_TOKENS
                if model == PACED:
                    self._decoder().add(job_id, n_tokens)
                    return
                self._link.send_tokens((JobPieces(job_id, (TokenPiece(TOKEN_TEXT),) * n_tokens),))
                self._link.send(_done(job_id, "length", decoded_tokens=n_tokens))
            case CancelJob(job_id=job_id):
                if any(decoder.remove(job_id) for decoder in self._decoders):
                    self._link.send(_done(job_id, "cancelled"))

    def _decoder(self) -> Decoder:
        """One with a free slot."""
        for decoder in self._decoders:
            if decoder.has_room:
                return decoder
        self._decoders.append(Decoder(self._link, len(self._decoders)))
        return self._decoders[-1]


def _done(job_id: str, reason: str, *, decoded_tokens: int = 0) -> JobDone:
    usage = JobUsage(
        prompt_tokens=PROMPT_TOKENS, decoded_tokens=decoded_tokens, queue_s=0.0, prefill_s=0.0, decode_s=0.0
    )
    return JobDone(job_id=job_id, reason=reason, usage=usage)


async def _run(urls: list[str], token: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        for url in urls:
            tasks.create_task(FakeAgent(url, token).run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", action="append", required=True, help="a coordinator's agents URL; may be repeated")
    parser.add_argument("--token-file", type=Path, required=True)
    arguments = parser.parse_args()
    configure_logging("warning")
    uvloop.run(_run(arguments.url, read_secret(arguments.token_file)))


if __name__ == "__main__":
    main()
