"""A fleet of one host in virtual time: everything real but the model, the sensor and the clock.

The agent's core, its decoder and lanes, its accounts and cost models, and the coordinator's selection and calibration
are the real ones. A batch takes what a law says (a fixed part, one for each sequence, one for each prompt token, one
for what attention looks back on) with a few percent of noise; power is a simulated board's at the real activity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from operator import mul
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from msgspec.structs import replace

from moe2.agent.energy.account import HostAccount
from moe2.agent.energy.attribution import DeviceAccount
from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.profiles import PROFILES
from moe2.agent.energy.sensor import Limits, SensorFacts
from moe2.agent.engine import protocol
from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome, Lanes
from moe2.agent.engine.decoding.decoder import Decoder
from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.intake import Intake
from moe2.agent.engine.decoding.intake import Limits as DecoderLimits
from moe2.agent.engine.decoding.shelf import Shelf, State
from moe2.agent.engine.prompt.request import RequestReader
from moe2.agent.jobs import core
from moe2.agent.jobs.effects import SendToCoordinator, SendToEngine, SendTokens, SettleEnergy
from moe2.agent.jobs.events import EnergySettled, EngineSpoke, Event, JobSubmitted
from moe2.agent.settings import ModelSection
from moe2.common.energy import NEVER_RAN, Scope
from moe2.common.generation import Generation
from moe2.common.link.messages import JobDone, JobFailed, JobWord, Submit, Tokens
from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.choosing.prefix_affinity import Affinity
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.observing.accuracy import CalibrationReport, CalibrationWindow
from moe2.coordinator.serving import effects, events
from moe2.coordinator.serving.chooser import InFlight
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.modes import MODES
from moe2.coordinator.serving.request import Request
from tests.coordinator.experts import selector

_VOCABULARY = 1000
_CONTEXT = 4096
_SAMPLE_S = 0.1
_PREFILL_TOKENS_PER_S, _DECODE_TOKENS_PER_S = 600.0, 50.0


@dataclass(frozen=True)
class Load:
    """Clients that each wait for their answer and pause before the next request.

    pause_s: mean of exponential pauses. prompt_tokens, answer_tokens: drawn from. estimate: tokens that the coordinator
    takes a real one for. turns: of a conversation, each of which brings a prompt's worth of new tokens after all
    earlier ones, which are in the cache. found_idle: the first batch after so many seconds without any takes so many
    seconds more, as clocks and caches have gone down.
    """

    clients: int = 3
    pause_s: float = 0.3
    prompt_tokens: Sequence[int] = (15, 40, 80, 150)
    answer_tokens: Sequence[int] = (32, 64, 96, 128)
    estimate: float = 1.0
    turns: int = 1
    found_idle: tuple[float, float] = (0.2, 0.0)


class VirtualHost:
    """One expert under a load. `serve` advances the time."""

    law = (0.012, 0.003, 0.0016, 2e-6)
    """Seconds of a batch, of each sequence decoded, of each token of a prompt, of each that is looked back on."""

    def __init__(self, load: Load, *, slots: int = 4, seed: int = 0, noise: float = 0.03) -> None:
        self.now_s = 100.0
        self.pace = 1.0
        self.n_answered = 0
        self._load = load
        self._random = Random(seed)
        self._noise = noise
        self._power = PROFILES["agx-orin-maxn"].power_w
        self._track = EnergyTrack()
        self._sampled_s = self.now_s
        facts = SensorFacts(
            name="virtual",
            device="virtual",
            scope=Scope.MODULE_RAILS,
            source="virtual",
            has_counter=False,
            limits=Limits(min_power_w=0.0, max_power_w=1000.0, stuck_after_s=None),
        )
        device = DeviceAccount(facts, self._track, start_s=self.now_s, max_settle_s=0.3)
        self._account = HostAccount((device,), why_unmeasured="")
        self._core = core.AgentCore((ModelSection(name="m", path=Path("m.gguf"), slots=slots),))
        cache = _Cache(self)
        lanes = Lanes(lanes=2 * slots + 2, cells=_CONTEXT, cuts_anywhere=True)
        limits = DecoderLimits(
            slots=slots,
            context_tokens=_CONTEXT,
            idle_tokens=_CONTEXT,
            job_tokens=_CONTEXT,
            batch_tokens=512,
            outputs=512,
        )
        intake = Intake(
            reader=RequestReader(_Counting(), None, vocabulary_size=_VOCABULARY),
            cache=cache,
            lanes=lanes,
            new_draw=lambda _: _Draw(self._random),
            limits=limits,
        )
        self._decoder = Decoder(
            intake=intake,
            cache=cache,
            lanes=lanes,
            shelf=Shelf(most_bytes=0, cuts_anywhere=True, free_bytes=lambda: None),
            limits=limits,
            clock=lambda: self.now_s,
            emit=self._spoke,
            prefill_tokens_per_s=_PREFILL_TOKENS_PER_S,
        )
        self._selector = selector()
        self._in_flight = InFlight()
        self._epoch = 0
        self._calibration = CalibrationWindow(5000)
        self._lives: dict[str, tuple[Lifecycle, int]] = {}
        self._talks: dict[int, _Talk] = {}
        self._worked_s = self.now_s
        self._arrivals: list[tuple[float, int]] = []
        self._inbox: list[tuple[Submit, float]] = []
        self._n_requests = 0
        self._spoke(_loaded(slots))
        for client in range(load.clients):
            self._pause(client)

    def serve(self, seconds: float) -> CalibrationReport:
        """Let so much time pass; the calibration of the requests that were answered in it."""
        end_s, before = self.now_s + seconds, self.n_answered
        while self.now_s < end_s:
            if self._arrivals and self._arrivals[0][0] <= self.now_s:
                self._arrive(heappop(self._arrivals)[1])
                self._read_inbox()
                continue
            if self._decoder.has_work:
                self._decoder.step()
                self._read_inbox()
            else:
                due_s = [self._sampled_s + _SAMPLE_S, *(at_s for at_s, _ in self._arrivals[:1])]
                self.now_s = max(self.now_s, min(due_s))
            self._sample()
            for job_id, energy in self._account.settle(self.now_s).items():
                self._do(EnergySettled(job_id, energy))
        return self._calibration.report(max(1, self.n_answered - before))

    def _read_inbox(self) -> None:
        """What was sent to the engine while it was at work is read between its steps."""
        while self._inbox:
            self._decoder.submit(*self._inbox.pop(0))

    def batch_passed(self, chunks: Sequence[Chunk]) -> None:
        """The law of this host's speed."""
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        decoding = sum(len(chunk.tokens) == 1 for chunk in chunks)
        looked_back = sum(len(chunk.tokens) * (chunk.start + len(chunk.tokens) / 2) for chunk in chunks)
        batch_s = sum(map(mul, self.law, (1, decoding, tokens - decoding, looked_back)))
        idle_s, slower_s = self._load.found_idle
        if self.now_s - self._worked_s > idle_s:
            batch_s += slower_s
        end_s = self.now_s + self.pace * batch_s * self._random.lognormvariate(0.0, self._noise)
        # Who comes meanwhile is chosen for and sent at once, and read by the engine after its step.
        while self._arrivals and self._arrivals[0][0] < end_s:
            self.now_s, client = heappop(self._arrivals)
            self._arrive(client)
        self.now_s = self._worked_s = end_s

    # --- Coordinator --------------------------------------------------------------------------------------------------

    def _arrive(self, client: int) -> None:
        self._n_requests += 1
        request_id = f"r{self._n_requests}"
        new_tokens = round(self._random.choice(self._load.prompt_tokens) * self._random.uniform(0.9, 1.1))
        talk = self._talks.get(client)
        if talk is None or talk.turn == self._load.turns:
            talk = _Talk(self._n_requests, 0, 0)
        self._talks[client] = _Talk(talk.number, talk.turn + 1, talk.tokens + new_tokens)
        prompt_tokens = talk.tokens + new_tokens
        max_tokens = self._random.choice(self._load.answer_tokens)
        request = Request(
            request_id=request_id,
            model="m",
            prompt=TextPrompt(text=f"{prompt_tokens} {talk.number}"),
            generation=Generation(max_tokens=max_tokens),
            demand=Demand(round(self._load.estimate * prompt_tokens), max_tokens),
            arrived_s=self.now_s,
            deadline_s=self.now_s + 3600.0,
        )
        life = Lifecycle(request=request, modes=MODES)
        self._lives[request_id] = (life, client)
        [question] = life.handle(events.Admitted(), self.now_s)
        assert isinstance(question, effects.ChooseExperts)
        asked = replace(question.asked, affinity=Affinity("a/m", talk.tokens) if talk.tokens else None)
        for effect in life.handle(events.ExpertsChosen(self._choose(asked)), self.now_s):
            assert isinstance(effect, effects.SubmitJob)
            assert isinstance(effect.job, Submit)
            self._in_flight.begun(life.attempts[-1])
            self._do(JobSubmitted(effect.job))

    def _choose(self, request: SelectionRequest) -> Selection | NoExpert:
        self._epoch += 1
        [report] = self._core.expert_reports(self.now_s)
        expert = Expert(key="a/m", agent_id="a", agent_name="a", model="m", report=report)
        left = partial(self._in_flight.work_left, self.now_s)
        return self._selector.select(request, [expert], self._in_flight.count, self._epoch, work_left=left)

    def _told(self, message: JobWord) -> None:
        assert not isinstance(message, JobFailed), message
        if not isinstance(message, JobDone):
            return
        self._in_flight.over("a/m", message.job_id)
        life, client = self._lives.pop(message.job_id.partition(".")[0])
        life.handle(events.AttemptDone(message), self.now_s)
        assert life.leading is not None
        self._selector.lengths.prompts.ran("m", life.request.demand, message.usage, life.leading.prediction.shape)
        self._calibration.request_retired(life)
        self.n_answered += 1
        self._pause(client)

    def _pause(self, client: int) -> None:
        heappush(self._arrivals, (self.now_s + self._random.expovariate(1 / self._load.pause_s), client))

    # --- Agent --------------------------------------------------------------------------------------------------------

    def _spoke(self, event: protocol.Event) -> None:
        match event:
            case protocol.Started(job_id=job_id, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens):
                weight = self._core.experts["m"].token_weight
                self._account.request_started(job_id, prompt_tokens - cached_tokens, self.now_s, weight)
            case Tokens(jobs=jobs):
                for job in jobs:
                    self._account.tokens_decoded(job.job_id, len(job.pieces), self.now_s)
        self._do(EngineSpoke("m", event))

    def _do(self, event: Event) -> None:
        for effect in self._core.handle(event, self.now_s):
            match effect:
                case SendToEngine(command=Submit() as job):
                    self._inbox.append((job, self.now_s))
                case SendTokens(jobs=jobs):
                    for one in jobs:
                        life, _ = self._lives[one.job_id.partition(".")[0]]
                        life.handle(events.TokensArrived(one.job_id, one.pieces), self.now_s)
                case SettleEnergy(job_id=job_id):
                    self._ended(job_id)
                case SendToCoordinator(message=message):
                    self._told(message)

    def _ended(self, job_id: str) -> None:
        if not self._account.request_ended(job_id, self.now_s):
            self._do(EnergySettled(job_id, NEVER_RAN))
            return
        # As the daemon does: one reading at once, so that the answer need not wait for the next turn.
        self._sample()
        self._track.add_power(self.now_s, self._power(self._account.activity))

    def _sample(self) -> None:
        while self._sampled_s + _SAMPLE_S <= self.now_s:
            self._sampled_s += _SAMPLE_S
            self._track.add_power(self._sampled_s, self._power(self._account.activity))


def _loaded(slots: int) -> protocol.Loaded:
    return protocol.Loaded(
        facts=protocol.ModelFacts(
            architecture="virtual",
            file_bytes=1,
            vocabulary_size=_VOCABULARY,
            vocabulary_sha256="0" * 64,
            has_chat_template=True,
        ),
        load_s=0.0,
        context_tokens=_CONTEXT,
        slots=slots,
        warmup_prefill_tokens_per_s=_PREFILL_TOKENS_PER_S,
        warmup_decode_tokens_per_s=_DECODE_TOKENS_PER_S,
    )


@dataclass(frozen=True)
class _Talk:
    """A conversation: its number, its turns so far, and the tokens that were said in them."""

    number: int
    turn: int
    tokens: int


class _Counting:
    """A vocabulary for prompts of the form "TOKENS NUMBER"; the number makes their first tokens differ."""

    bos = ""
    control_texts: tuple[str, ...] = ()
    infill_marks: tuple[int, int, int] | None = None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        count, number = map(int, text.split())
        return [1 + (number + index * (number % 7 + 1)) % (_VOCABULARY - 1) for index in range(count)]

    def piece(self, token: int) -> bytes:
        return b"x"

    def special_text(self, token: int) -> str:
        return ""

    def is_end(self, token: int) -> bool:
        return token == 0


class _Cache:
    def __init__(self, host: VirtualHost) -> None:
        self._host = host

    def decode(self, chunks: Sequence[Chunk]) -> DecodeOutcome:
        self._host.batch_passed(chunks)
        return DecodeOutcome.DONE

    def logits(self, place: int) -> Logits:
        return np.zeros(_VOCABULARY, dtype=np.float32)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Nothing is kept."""

    def trim(self, lane: int, keep: int) -> bool:
        return True

    def state_bytes(self, lane: int) -> int:
        return 1

    def save(self, lane: int) -> State:
        raise NotImplementedError("this host has no shelf")

    def restore(self, lane: int, state: State) -> bool:
        raise NotImplementedError("this host has no shelf")


class _Draw:
    """Any token but the end."""

    is_ready = True

    def __init__(self, random: Random) -> None:
        self._random = random

    def sample(self, place: int) -> Any:
        return self._random.randrange(1, _VOCABULARY)

    def sample_kept(self, logits: Any) -> Any:
        return self._random.randrange(1, _VOCABULARY)

    def close(self) -> None:
        """Nothing is held."""
