"""Experts, reports and requests as tests need them."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe2.common.cost import EnergyProfile, LatencyProfile, Spread
from moe2.common.energy import Quality
from moe2.common.generation import Generation, Sampling
from moe2.common.link.messages import Hello, Report
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.coordinator.choosing.forecast import Prediction, Roster
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Budgets, Demand
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.serving.request import Request
from tests.common.samples import SMALLEST_HOST

EXACT = Spread(p50=0.0, p95=0.0)


def speed(
    prefill_tokens_per_s: float, decode_tokens_per_s: float, *, slots: int = 2, spread: Spread = EXACT
) -> LatencyProfile:
    """A profile of plain rates: nothing fixed, no slowing in a batch or with the context."""
    return LatencyProfile(
        prefill=(0.0, 1 / prefill_tokens_per_s, 0.0, 0.0),
        decode=(1 / decode_tokens_per_s, 0.0, 0.0),
        slots=slots,
        service_s=1.0,
        ttft=spread,
        inter_token=spread,
        total=spread,
        n_requests=10,
    )


def cost(j_per_decoded_token: float, *, quality: Quality = Quality.MEASURED_COUNTER) -> EnergyProfile:
    """A profile where only decoded tokens cost anything."""
    return EnergyProfile(coefficients=(0.0, j_per_decoded_token, 0.0, 0.0), spread=EXACT, quality=quality)


MEASURED = speed(1000.0, 50.0)


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
        "latency": MEASURED,
        **fields,
    }
    return ExpertReport(model=model, state=state, **settled)


def report(*experts: ExpertReport, **fields: Any) -> Report:
    return Report(**{"seq": 1, "host": SMALLEST_HOST, "experts": experts, **fields})


def expert(agent_id: str = "agent-1", model: str = "m", **fields: Any) -> Expert:
    return Expert(
        key=f"{agent_id}/{model}",
        agent_id=agent_id,
        agent_name=f"name of {agent_id}",
        model=model,
        report=expert_report(model, **fields),
    )


def request(**fields: Any) -> Request:
    """fields: of the request, or of what it says about its text."""
    said = {name: fields.pop(name) for name in Generation.__struct_fields__ if name in fields}
    return Request(
        **{
            "request_id": "req-1",
            "model": "m",
            "prompt": ChatPrompt(messages=(ChatMessage(role="user", content="Hi"),)),
            "generation": Generation(
                **{"sampling": Sampling(seed=7), "max_tokens": 20, "stop": ("END",), "logprobs": 2, **said}
            ),
            "demand": Demand(prompt_tokens=10, max_tokens=20),
            "arrived_s": 100.0,
            "deadline_s": 160.0,
            **fields,
        }
    )


def text_request(**fields: Any) -> Request:
    return request(prompt=TextPrompt(text="Once"), **fields)


def predict(expert: Expert, demand: Demand, busy: int) -> Prediction:
    """What a request takes on one expert, with `busy` requests already there."""
    forecast = Roster((expert,)).forecast(np.array([demand.prompt_tokens]), demand.answer_tokens, np.array([busy]))
    return forecast.prediction(0)


def selector(**categories: Budgets) -> Selector:
    return Selector(Scorer(None), categories, clock=lambda: 0.0)
