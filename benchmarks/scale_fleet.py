"""Many fake hosts in one process, for `benchmarks.scale`: real links, credentials and reports, answers at once.

Each host has an identity and a credential of its own, which it enrols with the token it is given, and reports two
experts with learned profiles that differ a little from host to host, as measured ones do. The process prints one JSON
line when it begins to connect and whenever all hosts are connected: `{"joined": N, "at_s": ...}`, N of them 0 or all,
in monotonic seconds of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic, time
from urllib.parse import quote

import uvloop

from benchmarks.fake_agent import PROMPT_TOKENS, TOKEN_TEXT, Timing
from moe2.agent.link.link import Link
from moe2.agent.link.reporting import until_report_s
from moe2.common.backoff import Backoff
from moe2.common.cost import EnergyProfile, LatencyProfile, Spread
from moe2.common.energy import Attribution, Energy, Quality, Scope
from moe2.common.link.enrolment import AGENT_ID_HEADER, AGENT_NAME_HEADER, CREDENTIAL_HEADER
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
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
from moe2.common.link.reports import ExpertReport, ExpertState, HostFacts, Performance, SensorReport
from moe2.common.link.session import JobMessage
from moe2.common.logs import configure_logging
from moe2.common.secretfile import read_secret
from moe2.common.standby import IdlePower, Standby, StandingEnergy

EXPERTS_PER_HOST = 2
SLOTS = 4
ANSWER_TOKENS = 16


@dataclass(frozen=True)
class HostKind:
    """A kind of host: seconds per token and joules per token of a model of 10^9 parameters, and watts when idle."""

    accelerator: str
    token_s: float
    token_j: float
    idle_w: float


KINDS = (
    HostKind("Jetson AGX Orin", 0.020, 0.45, 12.0),
    HostKind("Jetson Orin NX", 0.035, 0.40, 7.0),
    HostKind("Jetson Orin Nano", 0.050, 0.35, 5.0),
    HostKind("RTX 4090", 0.004, 0.90, 25.0),
    HostKind("CPU", 0.080, 2.50, 20.0),
)
MODELS = {"small-0.5b": 0.5e9, "small-1b": 1e9, "medium-3b": 3e9, "medium-7b": 7e9, "coder-3b": 3e9, "coder-7b": 7e9}
"""Names of the models with their parameters."""
SPREAD = Spread(p50=0.0, p95=0.2)
DIFFERENCE = 0.05
"""The standard deviation of what hosts of one kind measure, as a part of the mean."""


class Credential:
    """The credential of one fake host, kept as long as the process lives."""

    def __init__(self, agent_id: str, token: str) -> None:
        self._who = {AGENT_ID_HEADER: agent_id, AGENT_NAME_HEADER: quote(agent_id)}
        self._secret = secrets.token_urlsafe(32)
        self._token = token
        self._is_enrolled = False

    def headers(self) -> dict[str, str]:
        """Returns the headers of an upgrade request: the token until the host is enrolled, then its own secret."""
        if self._is_enrolled:
            return {"Authorization": f"Bearer {self._secret}", **self._who}
        return {"Authorization": f"Bearer {self._token}", CREDENTIAL_HEADER: self._secret, **self._who}

    def enrolled(self) -> None:
        """Notes that the coordinator knows the secret."""
        self._is_enrolled = True

    def unknown(self) -> bool:
        """Returns False: there is nothing else to show."""
        return False


class Fleet:
    """Many fake hosts. on_joined: called with their number whenever all are connected, and with 0 at the beginning."""

    def __init__(self, url: str, token: str, n_hosts: int, on_joined: Callable[[int], None]) -> None:
        self._on_joined = on_joined
        self._n_connected = 0
        self._hosts = [FakeHost(self, url, token, number) for number in range(n_hosts)]

    async def run(self) -> None:
        """Serves all hosts until it is cancelled."""
        self._on_joined(0)
        async with asyncio.TaskGroup() as tasks:
            for host in self._hosts:
                tasks.create_task(host.run())

    def connected(self) -> None:
        """Notes that a host is connected."""
        self._n_connected += 1
        if self._n_connected == len(self._hosts):
            self._on_joined(self._n_connected)

    def lost(self) -> None:
        """Notes that a host has lost its link."""
        self._n_connected -= 1


class FakeHost:
    """One fake host: its link, its reports, its instant answers."""

    def __init__(self, fleet: Fleet, url: str, token: str, number: int) -> None:
        self._fleet = fleet
        self._random = Random(number)
        self._kind = KINDS[number % len(KINDS)]
        agent_id = f"host-{number:05d}"
        self._host = HostFacts(
            hostname=agent_id, system="Linux", architecture="aarch64", accelerator=self._kind.accelerator, cpu_count=8
        )
        names = tuple(MODELS)
        # Two models that are not neighbours in the list, others on the next host of the kind.
        places = (number // len(KINDS) + 3 * place for place in range(EXPERTS_PER_HOST))
        self._experts = tuple(self._expert(names[place % len(names)]) for place in places)
        self._epoch = secrets.token_hex(8)
        self._idle_j = 0.0
        self._report_s = 5.0
        self._seq = 0
        self._link = Link(
            url=url,
            credentials=Credential(agent_id, token),
            tls=lambda: None,
            hello=Hello(
                protocol_min=PROTOCOL_VERSION,
                protocol_max=PROTOCOL_VERSION,
                agent_id=agent_id,
                agent_name=agent_id,
                agent_version="0",
                instance_id=self._epoch,
                hostname=agent_id,
            ),
            timing=Timing(connect_timeout_s=60.0),
            backoff=Backoff(first_s=0.2, most_s=2.0, random=self._random),
            on_opened=self._opened,
            on_message=self._received,
            on_lost=fleet.lost,
        )

    async def run(self) -> None:
        """Serves the link and reports at the coordinator's pace until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run())
            tasks.create_task(self._report_steadily())

    def _expert(self, model: str) -> ExpertReport:
        size = MODELS[model] / 1e9
        token_s = self._kind.token_s * size * self._random.gauss(1.0, DIFFERENCE)
        token_j = self._kind.token_j * size * self._random.gauss(1.0, DIFFERENCE)
        return ExpertReport(
            model=model,
            state=ExpertState.READY,
            context_tokens=8192,
            slots=SLOTS,
            max_queue=SLOTS,
            architecture="fake",
            quantization="Q4_K_M",
            parameters=int(MODELS[model]),
            has_chat_template=True,
            supports_tools=True,
            performance=Performance(
                prefill_tokens_per_s=10 / token_s,
                decode_tokens_per_s=1 / token_s,
                ttft_s=3 * token_s,
                j_per_decoded_token=token_j,
                idle_w=self._kind.idle_w,
                n_requests=200,
            ),
            latency=LatencyProfile(
                prefill=(token_s, token_s / 10, token_s / 100, token_s / 1000),
                decode=(token_s, token_s / 10, token_s / 100),
                slots=SLOTS,
                service_s=ANSWER_TOKENS * token_s,
                ttft=SPREAD,
                inter_token=SPREAD,
                total=SPREAD,
                n_requests=200,
            ),
            energy=EnergyProfile(
                coefficients=(token_j / 10, token_j / 2, token_j / 2, token_j / 1000),
                spread=SPREAD,
                quality=Quality.MEASURED_INTEGRATED,
                scope=Scope.MODULE_INPUT,
                idle_w=self._kind.idle_w,
                n_requests=200,
            ),
        )

    def _opened(self, welcome: Welcome) -> None:
        self._report_s = welcome.report_s
        self._report()
        self._fleet.connected()

    async def _report_steadily(self) -> None:
        # Hosts do not report in step.
        await asyncio.sleep(self._random.random() * self._report_s)
        while True:
            # As agents do, whose clocks agree here.
            await asyncio.sleep(until_report_s(self._report_s, time()))
            self._report()

    def _report(self) -> None:
        """Reports what a host at rest reports: the same experts, a little older, and the joules until now."""
        self._seq += 1
        power_w = self._kind.idle_w * self._random.gauss(1.0, 0.01)
        self._idle_j += power_w * self._report_s
        standby = Standby(
            idle=(IdlePower(power_w=self._kind.idle_w, models=tuple(sorted(one.model for one in self._experts))),),
            energy=StandingEnergy(
                epoch=self._epoch,
                idle_j=self._idle_j,
                measured_s=self._seq * self._report_s,
                quality=Quality.MEASURED_INTEGRATED,
                scope=Scope.MODULE_INPUT,
            ),
        )
        sensors = (SensorReport(name="ina3221", state="present", power_w=power_w),)
        self._link.send(Report(seq=self._seq, host=self._host, experts=self._experts, sensors=sensors, standby=standby))

    def _received(self, message: JobMessage) -> None:
        if not isinstance(message, Submit):
            return
        n_tokens = message.max_tokens or ANSWER_TOKENS
        expert = next(expert for expert in self._experts if expert.model == message.model)
        joules = n_tokens * (expert.performance.j_per_decoded_token or 0.0)
        self._link.send(JobStarted(job_id=message.job_id, prompt_tokens=PROMPT_TOKENS, queue_s=0.0))
        self._link.send_tokens((JobPieces(message.job_id, (TokenPiece(TOKEN_TEXT),) * n_tokens),))
        usage = JobUsage(
            prompt_tokens=PROMPT_TOKENS,
            decoded_tokens=n_tokens,
            queue_s=0.0,
            prefill_s=0.0,
            decode_s=0.0,
            energy=Energy(
                joules=joules,
                quality=Quality.MEASURED_INTEGRATED,
                scope=Scope.MODULE_INPUT,
                source="ina3221",
                coverage=1.0,
                attribution=Attribution.EXCLUSIVE,
            ),
        )
        self._link.send(JobDone(job_id=message.job_id, reason="length", usage=usage))


def _say(n_joined: int) -> None:
    print(json.dumps({"joined": n_joined, "at_s": monotonic()}), flush=True)


def main() -> None:
    """Runs the fleet that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="the coordinator's agents URL")
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--hosts", type=int, required=True, help="number of hosts")
    arguments = parser.parse_args()
    configure_logging("error")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))

    async def run() -> None:
        await Fleet(arguments.url, read_secret(arguments.token_file), arguments.hosts, _say).run()

    uvloop.run(run())


if __name__ == "__main__":
    main()
