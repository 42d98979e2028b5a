"""The tour: what the demo asks of its fleet, one budget after the other, and what it makes of the answers.

The fleet stands for a Jetson AGX Orin at 30 W and a workstation with an RTX 4090. Watts and pace are those of
published measurements with an 8B model (simulated); the answers come from a real model of 135 million parameters.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from examples.demo.client import Answer, DemoClient, Prompt
from examples.demo.fleet import Fleet
from examples.demo.models import Model
from examples.demo.setup import Setup
from moe2.common.status import AverageRow, CoordinatorStatus

PROMPT = "Name a colour of the sky."
MAX_TOKENS = 8
SUBJECTS = ("sea", "forest", "desert", "moon", "garden", "river", "street", "kitchen", "winter", "harbour")
CHOICES = ("blue", "grey", "green")
WARM_UPS = 3
"""Prompts to each expert before the tour: an expert is chosen by what it was measured to take."""
AVERAGE_PROMPTS = 20
AVERAGE_AT_ONCE = 2
CATEGORY = "tour"
POLL_S = 0.1
DECIDED_S = 10.0


@dataclass(frozen=True)
class Budgeted:
    """One stop of the tour: what was wished, and the answer or the error that came of it."""

    wish: str
    outcome: Answer | dict[str, Any]


@dataclass(frozen=True)
class Averaged:
    """The answers under an average budget in J, in the order in which they came, and how the coordinator shows it."""

    target_j: float
    answers: tuple[Answer, ...]
    row: AverageRow | None


@dataclass(frozen=True)
class Tour:
    """Everything that the tour has seen."""

    budgeted: tuple[Budgeted, ...]
    averaged: Averaged
    plan: dict[str, Any]
    status: CoordinatorStatus


def joules(answer: Answer) -> float | None:
    """Return what an answer took in J, over all of its attempts; None where it is not known."""
    known: float | None = answer.receipt["energy"]["joules"]
    return known


async def warm_up(client: DemoClient, models: Sequence[Model]) -> tuple[Answer, ...]:
    """Ask each expert a few prompts, all hosts at once, and score the answers as a user would who likes the 4090's.

    The scores are made up: the two models are too much alike to differ in a few answers.
    """

    async def ask(model: Model, score: float) -> list[Answer]:
        prompts = [Prompt(f"Name a thing in the {subject}.", model.name, MAX_TOKENS) for subject in SUBJECTS[:WARM_UPS]]
        answers = [await client.ask(prompt) for prompt in prompts]
        for answer in answers:
            await client.score(answer, score)
        return answers

    best, *others = models
    asked = await asyncio.gather(ask(best, 1.0), *(ask(model, 0.0) for model in others))
    return tuple(answer for answers in asked for answer in answers)


async def budgets(client: DemoClient) -> tuple[Budgeted, ...]:
    """Ask one prompt under four budgets that lie between what the two experts take, the last one impossible."""
    stops = [Budgeted("none", await client.ask(_asked({})))]
    energy_j, delay_s = await _between(client)
    stops.append(Budgeted(f"{energy_j:.0f} J", await client.ask(_asked({"energy_budget_j": energy_j}))))
    _, delay_s = await _between(client)
    stops.append(Budgeted(f"{delay_s:.2g} s", await client.ask(_asked({"latency_budget_s": delay_s}))))
    energy_j, delay_s = await _between(client)
    refused = await client.refusal(_asked({"energy_budget_j": energy_j, "latency_budget_s": delay_s}))
    return (*stops, Budgeted(f"{energy_j:.0f} J and {delay_s:.2g} s", refused))


async def _between(client: DemoClient) -> tuple[float, float]:
    """Return joules and seconds that one expert keeps and the other does not, as is predicted now."""
    rows = (await client.plan(_asked({})))["decision"]["experts"]
    costs_j, delays_s = ([row[figure]["p95"] for row in rows] for figure in ("energy_j", "total_s"))
    return math.sqrt(min(costs_j) * max(costs_j)), math.sqrt(min(delays_s) * max(delays_s))


def _asked(wishes: dict[str, Any]) -> Prompt:
    return Prompt(PROMPT, max_tokens=MAX_TOKENS, wishes=wishes)


async def average(client: DemoClient, setup: Setup, fleet: Fleet, warm_ups: Sequence[Answer]) -> Averaged:
    """Set an average between what the two experts took, reload the coordinator, and ask twenty prompts under it."""
    by_model: dict[str, list[float]] = {}
    for answer in warm_ups:
        by_model.setdefault(answer.prompt.model, []).append(joules(answer) or 0.0)
    # The middle of each: the first answer of an engine takes longer than those that follow.
    target_j = float(round(sum(median(costs) for costs in by_model.values()) / len(by_model)))
    setup.set_average(CATEGORY, target_j)
    fleet.reload_coordinator()
    async with asyncio.timeout(DECIDED_S):
        while not _row(await client.fleet()):
            await asyncio.sleep(POLL_S)
    answers: list[Answer] = []
    places = iter(range(AVERAGE_PROMPTS))

    async def ask() -> None:
        for place in places:
            text = f"Name a thing in the {SUBJECTS[place % len(SUBJECTS)]}."
            answers.append(await client.ask(Prompt(text, max_tokens=MAX_TOKENS, wishes={"category": CATEGORY})))

    await asyncio.gather(*(ask() for _ in range(AVERAGE_AT_ONCE)))
    return Averaged(target_j, tuple(answers), _row(await client.fleet()))


async def _decided(client: DemoClient) -> CoordinatorStatus:
    """Return the fleet's status once the slow level has decided about all experts, or as it is when that takes long."""
    try:
        async with asyncio.timeout(DECIDED_S):
            while True:
                status = await client.fleet()
                provisioning = status.provisioning
                if provisioning and provisioning.status and not provisioning.stays:
                    return status
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return status


def _row(status: CoordinatorStatus) -> AverageRow | None:
    return next((row for row in status.averages if row.scope.endswith(CATEGORY)), None)


async def tour(client: DemoClient, setup: Setup, fleet: Fleet, models: Sequence[Model]) -> Tour:
    """Ask everything. Raises `DemoError` where the service does not do what it should."""
    warm_ups = await warm_up(client, models)
    budgeted = await budgets(client)
    averaged = await average(client, setup, fleet, warm_ups)
    plan = await client.plan(Prompt(PROMPT, max_tokens=MAX_TOKENS, wishes={"mode": "vote", "choices": CHOICES}))
    return Tour(budgeted, averaged, plan, await _decided(client))
