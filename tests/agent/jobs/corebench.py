"""A core on the bench: what tests say to it, and all that it said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe2.agent.engine import protocol
from moe2.agent.jobs.core import AgentCore
from moe2.agent.jobs.effects import Effect, SendToCoordinator, SendToEngine, SendTokens, SettleEnergy
from moe2.agent.jobs.events import EnergySettled, EngineExited, EngineSpoke, Event, JobSubmitted
from moe2.agent.settings import ModelSection
from moe2.common.energy import Energy, Quality
from moe2.common.link.messages import JobFailed, JobPieces, JobWord, Submit, TokenPiece, Tokens
from moe2.common.link.prompts import TextPrompt

SLOTS, MAX_QUEUE = 2, 2
JOULES = Energy(joules=3.0, quality=Quality.MEASURED_COUNTER)
LOADED = protocol.Loaded(
    facts=protocol.ModelFacts(
        architecture="llama",
        quantization="Q4_1",
        file_bytes=10,
        vocabulary_size=4,
        vocabulary_sha256="0" * 64,
        has_chat_template=True,
    ),
    load_s=0.5,
    context_tokens=2048,
    slots=SLOTS,
    warmup_prefill_tokens_per_s=500.0,
    warmup_decode_tokens_per_s=50.0,
)


def section(name: str) -> ModelSection:
    return ModelSection(name=name, path=Path("m.gguf"), slots=SLOTS, max_queue=MAX_QUEUE)


def submit(job_id: str = "j", *, model: str = "m", deadline_s: float | None = None) -> Submit:
    return Submit(job_id=job_id, request_id="r", model=model, prompt=TextPrompt(text="Once"), deadline_s=deadline_s)


def decoded(job_id: str, *texts: str) -> Tokens:
    return Tokens(jobs=(JobPieces(job_id=job_id, pieces=tuple(TokenPiece(text) for text in texts)),))


def finished(job_id: str, reason: str = "stop", **fields: Any) -> protocol.Finished:
    return protocol.Finished(
        **{
            "job_id": job_id,
            "reason": reason,
            "prompt_tokens": 7,
            "cached_tokens": 3,
            "decoded_tokens": 5,
            "wait_s": 0.5,
            "prefill_s": 0.25,
            "decode_s": 1.0,
            **fields,
        }
    )


class CoreBench:
    """A core with a clock and everything that it asked for."""

    def __init__(self, *models: str, ready: bool = True) -> None:
        self.core = AgentCore(tuple(section(name) for name in models or ("m",)))
        self.now_s = 100.0
        self.sent: list[JobWord] = []
        self.tokens: list[JobPieces] = []
        if ready:
            for name in models or ("m",):
                self.engine(LOADED, name)

    def do(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now_s)
        for effect in effects:
            match effect:
                case SendToCoordinator(message=message):
                    self.sent.append(message)
                case SendTokens(jobs=jobs):
                    self.tokens.extend(jobs)
        return effects

    def engine(self, event: protocol.Event, model: str = "m") -> list[Effect]:
        return self.do(EngineSpoke(model, event))

    def submit(self, job_id: str = "j", **fields: Any) -> list[Effect]:
        return self.do(JobSubmitted(submit(job_id, **fields)))

    def crash(self, reason: str = "killed by SIGSEGV", *, permanent: bool = False) -> list[Effect]:
        return self.do(EngineExited("m", reason, permanent))

    def settle(self, job_id: str = "j") -> JobWord | None:
        """Close the energy account; returns what was sent then."""
        before = len(self.sent)
        self.do(EnergySettled(job_id, JOULES))
        return self.sent[-1] if len(self.sent) > before else None

    def refusal(self, job_id: str = "j", **fields: Any) -> JobFailed:
        """Submit what must be refused at once."""
        effects = self.submit(job_id, **fields)
        [effect] = effects
        assert isinstance(effect, SendToCoordinator)
        assert isinstance(effect.message, JobFailed)
        return effect.message


def commands(effects: list[Effect]) -> list[protocol.Command]:
    return [effect.command for effect in effects if isinstance(effect, SendToEngine)]


def settling(effects: list[Effect]) -> list[str]:
    return [effect.job_id for effect in effects if isinstance(effect, SettleEnergy)]
