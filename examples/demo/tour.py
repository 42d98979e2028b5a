"""The tour: what the demo asks of its fleet, one budget after the other, and what it makes of the answers.

The fleet stands for a Jetson AGX Orin at 30 W and a workstation with an RTX 4090. Watts and pace are those of
published measurements with an 8B model (simulated); the answers come from a real model of 135 million parameters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from examples.demo.client import ANY_MODEL, Answer, DemoClient, Prompt
from examples.demo.errors import DemoError
from examples.demo.fleet import Fleet
from examples.demo.models import Model
from examples.demo.setup import Setup
from moe2.common.status import AverageRow, CoordinatorStatus
from moe2.coordinator.provisioning.decision import Decision, decide
from moe2.coordinator.provisioning.figures import fleet_of
from moe2.coordinator.provisioning.problem import Limits

PROMPT = "Name a colour of the sky."
MAX_TOKENS = 8
SUBJECTS = ("sea", "forest", "desert", "moon", "garden", "river", "street", "kitchen", "winter", "harbour")
CHOICES = ("blue", "grey", "green")
WARM_UPS = 3
"""Prompts to each expert before the tour: an expert is chosen by what it was measured to take."""
ROOM = 1.2
"""A budget over what the best expert for it is predicted to take at most."""
ALONE_PROMPTS = 4
"""Prompts to each expert from which the average is taken that lies between what the two cost."""
AVERAGE_SHARE = 0.7
"""Where the average lies between what the cheaper expert takes and what the dearer one does."""
AVERAGE_PROMPTS = 20
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
    """The answers under an average budget in J, in the order in which they came, and how the coordinator shows it.

    alone_j: what such an answer had taken just before, by the name of the agent that was asked for it; the mean.
    """

    alone_j: dict[str, float]
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
    night: Decision


def joules(answer: Answer) -> float | None:
    """Return what an answer took in J, over all of its attempts; None where it is not known."""
    known: float | None = answer.receipt["energy"]["joules"]
    return known


async def warm_up(client: DemoClient, models: Sequence[Model]) -> None:
    """Ask each expert a few prompts, all hosts at once, and score the answers as a user would who likes the 4090's.

    The scores are made up: the two models are too much alike to differ in a few answers.
    """

    async def ask(model: Model) -> None:
        prompts = [Prompt(f"Name a thing in the {subject}.", model.name, MAX_TOKENS) for subject in SUBJECTS[:WARM_UPS]]
        await _score(client, model, models, [await client.ask(prompt) for prompt in prompts])

    await asyncio.gather(*map(ask, models))


async def _score(client: DemoClient, model: Model, models: Sequence[Model], answers: Sequence[Answer]) -> None:
    """Score answers of a model as a user would who likes those of the first model and not those of the others."""
    for answer in answers:
        await client.score(answer, 1.0 if model is models[0] else 0.0)


async def budgets(client: DemoClient) -> tuple[Budgeted, ...]:
    """Ask one prompt under four budgets that lie between what the two experts take, the last one impossible."""
    stops = [Budgeted("none", await client.ask(_asked({})))]
    energy_j = ROOM * (await _least(client, "p95"))[0]
    stops.append(Budgeted(f"{energy_j:.0f} J", await client.ask(_asked({"energy_budget_j": energy_j}))))
    delay_s = ROOM * (await _least(client, "p95"))[1]
    stops.append(Budgeted(f"{delay_s:.2g} s", await client.ask(_asked({"latency_budget_s": delay_s}))))
    # Of the median, as the p95 can be half of what it was after one more answer.
    energy_j = (await _least(client, "p50"))[0] / 2
    refused = await client.refusal(_asked({"energy_budget_j": energy_j}))
    return (*stops, Budgeted(f"{energy_j:.0f} J", refused))


async def _least(client: DemoClient, quantile: str) -> tuple[float, float]:
    """Return the joules of the cheapest expert and the seconds of the fastest, as predicted now."""
    rows = (await client.plan(_asked({})))["decision"]["experts"]
    energy_j, delay_s = (min(row[figure][quantile] for row in rows) for figure in ("energy_j", "total_s"))
    return energy_j, delay_s


def _asked(wishes: dict[str, Any]) -> Prompt:
    return Prompt(PROMPT, max_tokens=MAX_TOKENS, wishes=wishes)


async def average(client: DemoClient, setup: Setup, fleet: Fleet, models: Sequence[Model]) -> Averaged:
    """Ask each expert a few prompts, then twenty under an average between what the two take.

    All are asked one after the other, the experts in turn: so an answer takes as much later as it did before, and is
    known before the next one is chosen. Raises `DemoError` where the joules of an expert's answers are not known.
    """
    told: dict[str, list[Answer]] = {model.name: [] for model in models}
    for place in range(ALONE_PROMPTS):
        for model in models:
            told[model.name].append(await client.ask(_in_the_tour(place, model.name)))
    alone_j: dict[str, float] = {}
    for model in models:
        answers = told[model.name]
        await _score(client, model, models, answers)
        known = [cost for answer in answers if (cost := joules(answer)) is not None]
        if not known:
            raise DemoError(f"The joules of {model.name} are not known: {answers[0].receipt['energy']}")
        alone_j[answers[0].receipt["experts"][0]["agent"]] = fmean(known)
    least_j, most_j = min(alone_j.values()), max(alone_j.values())
    target_j = float(round(least_j + AVERAGE_SHARE * (most_j - least_j)))
    setup.set_average(CATEGORY, target_j)
    fleet.reload_coordinator()
    await _seen(client, lambda status: _row(status) is not None)
    under = [await client.ask(_in_the_tour(place)) for place in range(AVERAGE_PROMPTS)]
    return Averaged(alone_j, target_j, tuple(under), _row(await client.fleet()))


def _in_the_tour(place: int, model: str = ANY_MODEL) -> Prompt:
    """A prompt of the tour's category."""
    text = f"Name a thing in the {SUBJECTS[place % len(SUBJECTS)]}."
    return Prompt(text, model, max_tokens=MAX_TOKENS, wishes={"category": CATEGORY})


def without_requests(status: CoordinatorStatus) -> Decision:
    """Return what the coordinator's slow level decides about this fleet for an hour in which nobody asks anything."""
    fleet = fleet_of(status.agents, lambda _: {})
    return decide(fleet, (), Limits(least_awake=1), price_per_j=1e-6, clock=time.perf_counter)


async def _seen(client: DemoClient, holds: Callable[[CoordinatorStatus], bool]) -> CoordinatorStatus:
    """Return the fleet's status once it is as wished, or as it is after `DECIDED_S`."""
    ends_s = time.monotonic() + DECIDED_S
    while True:
        status = await client.fleet()
        if holds(status) or time.monotonic() > ends_s:
            return status
        await asyncio.sleep(POLL_S)


def _has_decided(status: CoordinatorStatus) -> bool:
    """Whether the slow level has decided about all experts."""
    provisioning = status.provisioning
    return provisioning is not None and provisioning.status is not None and not provisioning.stays


def _row(status: CoordinatorStatus) -> AverageRow | None:
    return next((row for row in status.averages if row.scope.endswith(CATEGORY)), None)


async def tour(client: DemoClient, setup: Setup, fleet: Fleet, models: Sequence[Model]) -> Tour:
    """Ask everything. Raises `DemoError` where the service does not do what it should."""
    await warm_up(client, models)
    budgeted = await budgets(client)
    averaged = await average(client, setup, fleet, models)
    plan = await client.plan(Prompt(PROMPT, max_tokens=MAX_TOKENS, wishes={"mode": "vote", "choices": CHOICES}))
    status = await _seen(client, _has_decided)
    return Tour(budgeted, averaged, plan, status, without_requests(status))
