"""What the demo shows: what its tour has seen, and what to try next."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from examples.demo.client import Answer, Prompt
from examples.demo.setup import Daemon, Setup
from examples.demo.tour import PROMPT, Averaged, Budgeted, Tour, joules
from moe2.common.terminal import figures
from moe2.common.terminal.figures import UNMEASURED, known, printable
from moe2.coordinator.cli.fleet import told
from moe2.coordinator.provisioning.pacer import PAY_BACK_ANSWERS

ANSWER_CHARACTERS = 40
NOTABLY = 1.1
"""A mean that is above the average wanted by less counts as kept: twenty answers tell it no better."""


def tour_report(seen: Tour) -> RenderableType:
    """Everything that the tour has seen, in the order in which it went."""
    names = {row.agent_id: printable(row.agent_name) for row in seen.status.agents}
    return Group(
        _heading(f"The same prompt under four budgets: {PROMPT}"),
        budgets_table(seen.budgeted),
        Text("The score is the probability that an answer is good, from the tour's own made-up feedback.", style="dim"),
        *(_refusal(stop.outcome, names) for stop in seen.budgeted if not isinstance(stop.outcome, Answer)),
        _heading(
            f"An average budget of {seen.averaged.target_j:.0f} J an answer, over {len(seen.averaged.answers)} prompts"
        ),
        *_averaged(seen.averaged),
        _heading("Who would be put to sleep"),
        *_sleepers(seen, names),
        _heading("A plan with its proof: a vote by the best set of experts"),
        _proof(seen.plan, names),
        Text(
            "\nJoules, watts and pace are those of published measurements with an 8B model on these hosts: simulated.",
            style="dim",
        ),
    )


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def budgets_table(stops: Sequence[Budgeted]) -> Table:
    """One row per budget: who answered at which cost, or that nobody could."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("Budget", "Answered by"):
        table.add_column(name, no_wrap=True)
    for name in ("Score", "Joules (simulated)", "Time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Answer", ratio=1)
    for stop in stops:
        if not isinstance(stop.outcome, Answer):
            table.add_row(stop.wish, Text("nobody: refused", style="yellow"))
            continue
        receipt = stop.outcome.receipt
        score = next(row["score"] for row in receipt["decision"]["experts"] if row["chosen"])
        table.add_row(
            stop.wish,
            printable(receipt["experts"][0]["agent"]),
            f"{score:.2f}",
            UNMEASURED if receipt["energy"]["joules"] is None else figures.number(receipt["energy"]["joules"]),
            known(receipt["seconds"]["total"], figures.latency),
            Text(_short(stop.outcome.text), style="dim italic"),
        )
    return table


def _refusal(error: dict[str, Any], names: dict[str, str]) -> Text:
    """The refusal in a sentence, with its offers."""
    offers = [
        f"{what} {_named(offer['expert'], names)} with {figures.number(offer['energy_j'])} J and "
        f"{figures.latency(offer['total_s'])}"
        for what, offer in error["offers"].items()
    ]
    return Text(
        f"Budgets hold for what 95 of 100 such answers keep below. The refusal ({error['code']}) names what would do: "
        f"{', '.join(offers)}."
    )


def _averaged(averaged: Averaged) -> list[Text]:
    """Who answered in turn, the mean of the joules, and the price that led there."""
    agents = [printable(answer.receipt["experts"][0]["agent"]) for answer in averaged.answers]
    letters = {agent: agent.removeprefix("demo-")[0] for agent in agents}
    counts = ", ".join(f"{agents.count(agent)} by {agent} ({letter})" for agent, letter in sorted(letters.items()))
    alone = " and ".join(f"{known_j:.0f} J on {printable(agent)}" for agent, known_j in averaged.alone_j.items())
    costs = [cost for answer in averaged.answers if (cost := joules(answer)) is not None]
    unknown = [answer.receipt["energy"].get("reason") for answer in averaged.answers if joules(answer) is None]
    why = "; ".join(printable(reason) for reason in dict.fromkeys(unknown) if reason)
    lines = [
        Text(f"Just before, such an answer took {alone} (the mean, simulated)."),
        Text(f"{' '.join(letters[agent] for agent in agents)}   {counts}"),
        Text(
            f"Mean: {sum(costs) / len(costs):.0f} J of {averaged.target_j:.0f} J (simulated); "
            f"{len(unknown)} unmeasured{f' ({why})' if why else ''}."
            if costs
            else UNMEASURED
        ),
    ]
    if costs and sum(costs) / len(costs) > NOTABLY * averaged.target_j:
        lines.append(_above(averaged))
    if averaged.row is not None:
        lines.append(
            Text(
                f"The better expert is taken where its score is worth its joules: one has to bring "
                f"{100 * averaged.row.price_per_j:.2g} points of score now, and each answer moves that price."
            )
        )
    return lines


def _above(averaged: Averaged) -> Text:
    """Why the mean is above the average that was wanted: what answers took meanwhile, by who gave them."""
    costs: dict[str, list[float]] = {}
    for answer in averaged.answers:
        if (cost := joules(answer)) is not None:
            costs.setdefault(answer.receipt["experts"][0]["agent"], []).append(cost)
    means = {agent: sum(own) / len(own) for agent, own in costs.items()}
    took = " and ".join(f"{mean:.0f} J on {printable(agent)}" for agent, mean in sorted(means.items()))
    if min(means.values()) > averaged.target_j:
        end = "Nobody's answers kept below it."
    else:
        end = f"Each answer above it raises the price; {PAY_BACK_ANSWERS} more pay back what was too much."
    return Text(
        f"That is more than was wanted. Meanwhile an answer took {took} (the mean): the models run on this machine, "
        f"whose other work moves their joules. {end}"
    )


def _sleepers(seen: Tour, names: dict[str, str]) -> list[Text]:
    """What the slow level says of now, and what it decides for an hour without a request."""
    now = [Text(line) for line in told(seen.status)]
    night = seen.night
    if night.standing_w is None:
        return [*now, Text("For an hour without a request it cannot decide yet.")]
    kept = ", ".join(_named(key, names) for key in night.members) or "nobody"
    proof = "" if night.least_w is None else f", proven to be the fewest: {night.least_w:.1f} W"
    return [
        *now,
        Text(
            f"In an hour without a request it would keep {kept}, and the fleet would wait at "
            f"{night.standing_w:.1f} W{proof} (simulated)."
        ),
    ]


def _proof(plan: dict[str, Any], names: dict[str, str]) -> Text:
    """The certificate of a plan in a sentence."""
    decision, certificate = plan["decision"], plan["decision"]["certificate"]
    chosen = ", ".join(_named(row["expert"], names) for row in decision["experts"] if row["chosen"])
    if certificate is None:
        return Text(f"{chosen}: without a proof.")
    return Text(
        f"{chosen}: a good answer with probability {certificate['value']:.3f} on average; no set has more than "
        f"{certificate['upper_bound']:.3f} ({certificate['status']}, {certificate['nodes']} nodes, "
        f"{1000 * certificate['elapsed_s']:.2g} ms)."
    )


def _named(key: str, names: dict[str, str]) -> str:
    """The agent's name of an expert's key."""
    agent_id = key.partition("/")[0]
    return names.get(agent_id, printable(agent_id))


def _short(text: str) -> str:
    shown = " ".join(printable(text).split())
    return shown if len(shown) <= ANSWER_CHARACTERS else shown[:ANSWER_CHARACTERS].rstrip() + "…"


def next_steps(setup: Setup, folder: Path) -> RenderableType:
    """The URL, and commands to copy."""
    body = json.dumps(Prompt("Name three colours.").body(stream=False))
    curl = f"curl -s {setup.api_url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    lines = [
        Text.assemble("\nThe service runs at ", (f"{setup.api_url}/v1", "bold green"), "."),
        Text.assemble("Its page, with all of this live: ", (setup.api_url, "bold green"), "\n"),
        # One line each, however narrow the terminal is: they are there to be copied.
        Text(curl, style="cyan", no_wrap=True, overflow="ignore"),
        *(Text(status_command(daemon), style="cyan", no_wrap=True, overflow="ignore") for daemon in _daemons(setup)),
        Text("\nNext, real hosts: docs/jetson.md and docs/rtx4090.md; on each, ./install.sh agent."),
        Text(f"Configurations and logs are in {shown_path(folder)}.", style="dim"),
    ]
    return Group(*lines)


def _daemons(setup: Setup) -> tuple[Daemon, ...]:
    return (setup.coordinator, *setup.agents)


def status_command(daemon: Daemon) -> str:
    command = Path(sys.executable).parent / f"moe2-{daemon.program}"
    shown = shown_path(command) if command.exists() else f"{sys.executable} -m moe2.{daemon.program}"
    return f"{shown} status --socket {shown_path(daemon.socket)}"


def shown_path(path: Path) -> str:
    """Relative where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
