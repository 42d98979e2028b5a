"""Experts, reports and requests as tests need them."""

from __future__ import annotations

from typing import Any

import msgspec

from moe2.common.messages import (
    ChatMessage,
    ChatPrompt,
    ExpertReport,
    ExpertState,
    Hello,
    HostFacts,
    Performance,
    Report,
    Sampling,
    TextPrompt,
)
from moe2.coordinator.dispatch import Request
from moe2.coordinator.predict import Demand
from moe2.coordinator.table import Expert

MEASURED = Performance(prefill_tokens_per_s=1000.0, decode_tokens_per_s=50.0)
HOST = HostFacts(hostname="h", system="s", architecture="a")


def hello(agent_id: str = "agent-1") -> Hello:
    return Hello(
        protocol_min=1, protocol_max=1, agent_id=agent_id, agent_name=f"name of {agent_id}", agent_version="0.1.0"
    )


def expert_report(model: str = "m", state: ExpertState = ExpertState.READY, **fields: Any) -> ExpertReport:
    settled: dict[str, Any] = {
        "context_tokens": 4096,
        "slots": 2,
        "max_queue": 4,
        "has_chat_template": True,
        "performance": MEASURED,
        **fields,
    }
    return ExpertReport(model=model, state=state, **settled)


def report(*experts: ExpertReport, **fields: Any) -> Report:
    return Report(seq=1, host=HOST, experts=experts, **fields)


def expert(agent_id: str = "agent-1", model: str = "m", **fields: Any) -> Expert:
    return Expert(
        key=f"{agent_id}/{model}",
        agent_id=agent_id,
        agent_name=f"name of {agent_id}",
        model=model,
        report=expert_report(model, **fields),
    )


def request(**fields: Any) -> Request:
    return Request(
        **{
            "request_id": "req-1",
            "model": "m",
            "prompt": ChatPrompt(messages=(ChatMessage(role="user", content="Hi"),)),
            "sampling": Sampling(seed=7),
            "demand": Demand(prompt_tokens=10, max_tokens=20),
            "arrived_s": 100.0,
            "deadline_s": 160.0,
            "max_tokens": 20,
            "stop": ("END",),
            "logprobs": 2,
            **fields,
        }
    )


def text_request(**fields: Any) -> Request:
    return request(prompt=TextPrompt(text="Once"), **fields)


def with_performance(found: Expert, performance: Performance) -> Expert:
    changed = msgspec.structs.replace(found.report, performance=performance)
    return Expert(found.key, found.agent_id, found.agent_name, found.model, changed)
