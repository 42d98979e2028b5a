"""The command `moe2-coordinator plan`: asks the running coordinator what it would decide, and shows the answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe2.common.cost import Quantiles
from moe2.common.energy import Quality
from moe2.common.terminal.commandline import add_socket
from moe2.common.terminal.figures import UNMEASURED, number, printable
from moe2.common.terminal.output import Screen, say_json
from moe2.coordinator.choosing.explain import Decision, ExpertRow, FleetPowerRow, PriceRow
from moe2.coordinator.cli.asking import asked
from moe2.coordinator.cli.status import POINTS_PER_KJ
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.http.routes.plan import PlanAnswer
from moe2.coordinator.paths import DEFAULT_SOCKET_PATH

INFEASIBLE = 1
PLAN_S = 5.0
"""The time in which the coordinator has to answer."""
# In a pipe nothing is cut or wrapped.
PIPED_WIDTH = 240


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `plan`."""
    parser.add_argument("prompt", help="the user's message")
    parser.add_argument("--model", default="moe2", help="default: %(default)s, any model")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    parser.add_argument("--energy", type=float, metavar="J", help="energy budget in joules")
    parser.add_argument("--latency", type=float, metavar="S", help="seconds until the last token")
    parser.add_argument("--ttft", type=float, metavar="S", help="seconds until the first token")
    parser.add_argument("--quantile", choices=("p50", "p95"), help="which prediction the limits hold for")
    parser.add_argument("--max-experts", type=int, metavar="N", help="largest number of candidates kept")
    parser.add_argument(
        "--mode", choices=("auto", "route", "vote", "rank", "consensus", "mix"), help="how experts work together"
    )
    parser.add_argument("--choice", action="append", metavar="TEXT", help="a possible answer; repeat it for each")
    parser.add_argument("--category", help="whose default budgets apply")
    parser.add_argument("--json", action="store_true", help="the plan as one JSON document")
    add_socket(parser, DEFAULT_SOCKET_PATH)
    parser.set_defaults(act=run)


def run(arguments: argparse.Namespace) -> int:
    """Asks for the plan, prints it, and returns the exit code of `show_plan`."""
    wish = {
        "energy_budget_j": arguments.energy,
        "latency_budget_s": arguments.latency,
        "ttft_budget_s": arguments.ttft,
        "quantile": arguments.quantile,
        "max_experts": arguments.max_experts,
        "mode": arguments.mode,
        "choices": arguments.choice,
        "category": arguments.category,
    }
    return show_plan(
        arguments.socket,
        arguments.prompt,
        wish,
        model=arguments.model,
        max_tokens=arguments.max_tokens,
        as_json=arguments.json,
    )


def show_plan(
    socket: Path, prompt: str, wish: dict[str, Any], *, model: str, max_tokens: int | None, as_json: bool
) -> int:
    """Prints the plan and returns the exit code: 0 if an expert would answer, 1 if none would.

    Raises `Moe2Error` if the coordinator cannot be asked.
    """
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}], "moe2": wish}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    content = asked(socket, PLAN_PATH, msgspec.json.encode(body), timeout_s=PLAN_S)
    answer = msgspec.json.decode(content, type=PlanAnswer)
    if as_json:
        say_json(content, indent=2)
    else:
        draw(answer, Screen(width=None if sys.stdout.isatty() else PIPED_WIDTH))
    return 0 if answer.chosen else INFEASIBLE


def draw(answer: PlanAnswer, console: Console) -> None:
    """Draws the plan: the experts, the proof, and the frontier of energy and latency."""
    if answer.decision:
        console.print(_experts(answer.decision))
        proof = answer.decision.proof
        bound = "" if proof.upper_bound is None else f", bound {proof.upper_bound:.4f}"
        value = "–" if proof.value is None else f"{proof.value:.4f}"
        console.print(
            f"Proof: {proof.status} by {proof.method}; value {value}{bound}, "
            f"gap {'–' if proof.gap is None else f'{proof.gap:.4f}'}, {proof.nodes} nodes."
        )
        for line in _panel(answer.decision):
            console.print(Text(line))
        if answer.decision.fleet_power:
            console.print(_fleet_power(answer.decision.fleet_power))
        if answer.decision.price:
            console.print(Text(_price(answer.decision.price)))
        limits = ", ".join(f"{name} {limit}" for name, limit in answer.decision.budgets.items())
        console.print(f"Budgets: {limits or 'none'}; category {answer.decision.category or '–'}.")
        console.print(Text(_lengths(answer)))
    if answer.refusal:
        console.print(Text(answer.refusal, style="yellow"))
    if answer.frontier:
        simulated = answer.decision is not None and any(map(_is_simulated, answer.decision.experts))
        note = " (some experts' joules are simulated)" if simulated else ""
        console.print(Text(f"What other energy budgets would buy{note}", style="italic"))
        console.print(_frontier(answer))


def _lengths(answer: PlanAnswer) -> str:
    """The lengths that the predictions are for, in a sentence."""
    if answer.longest_answer_tokens is None:
        return f"Predicted for about {answer.prompt_tokens} prompt tokens and {answer.answer_tokens} answer tokens."
    return (
        f"Predicted for about {answer.prompt_tokens} prompt tokens and an answer of {answer.answer_tokens} tokens "
        f"(p50), {answer.longest_answer_tokens} (p95); the request sets no limit."
    )


def _panel(decision: Decision) -> Iterator[str]:
    """Yields the lines about a panel: its experts and their cost together. Yields nothing where one expert answers."""
    members = sorted((row for row in decision.experts if row.weight is not None), key=lambda row: -(row.weight or 0.0))
    if not members or decision.predicted is None:
        return
    shares = ", ".join(f"{printable(row.model)} on {printable(row.agent)} {row.weight:.0%}" for row in members)
    together = decision.predicted
    simulated = " (simulated)" if together.energy_quality == Quality.SIMULATED else ""
    yield f"Panel, {decision.mode}: {shares}."
    energy = "joules unmeasured" if together.energy_j is None else f"{_both(together.energy_j)} J{simulated}"
    yield f"Together: {energy}, {_both(together.total_s)} s (p50 / p95)."


def _fleet_power(power: FleetPowerRow) -> str:
    simulated = " (simulated)" if power.simulated else ""
    unmeasured = f"; {power.hosts_unmeasured} hosts unmeasured, without requests" if power.hosts_unmeasured else ""
    return f"Fleet: draws {power.drawn_w:.4g} W{simulated} of {power.cap_w:.4g} W at most{unmeasured}."


def _price(price: PriceRow) -> str:
    scopes = "; ".join(
        f"{printable(scope.scope)}: {scope.average_energy_j:.4g} J an answer, {_points(scope.price_per_j)}"
        for scope in price.scopes
    )
    return f"Price: {_points(price.price_per_j)}{f' ({scopes})' if scopes else ''}."


def _points(price_per_j: float) -> str:
    """A price in points, hundredths of a score, for a thousand joules."""
    return f"{number(price_per_j * POINTS_PER_KJ)} points per kJ"


def _experts(decision: Decision) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("EXPERT", "ON"):
        table.add_column(heading, no_wrap=True)
    for heading in ("SCORE", "FROM", "JOULES\np50 / p95", "FIRST s\np50 / p95", "WHOLE s\np50 / p95"):
        table.add_column(heading, overflow="fold")
    is_capped = decision.fleet_power is not None
    if is_capped:
        table.add_column("ADDS W", overflow="fold")
    table.add_column("WHY NOT", overflow="fold")
    for row in sorted(decision.experts, key=lambda row: (not row.chosen, not row.candidate, -row.score)):
        table.add_row(
            *_cells(row, is_capped=is_capped), style="bold green" if row.chosen else None if row.candidate else "dim"
        )
    return table


def _cells(row: ExpertRow, *, is_capped: bool) -> tuple[str, ...]:
    mark = "→" if row.chosen else "+" if row.candidate else " "
    simulated = " (simulated)" if _is_simulated(row) else ""
    added_w = UNMEASURED if row.added_w is None else f"{number(row.added_w)}{simulated}"
    return (
        mark,
        printable(row.model),
        printable(row.agent),
        f"{row.score:.3f}",
        row.score_source,
        _both(row.energy_j) + simulated,
        _both(row.ttft_s),
        _both(row.total_s),
        *((added_w,) if is_capped else ()),
        printable(row.reason or ""),
    )


def _is_simulated(row: ExpertRow) -> bool:
    return row.energy_quality == Quality.SIMULATED


def _both(quantiles: Quantiles | None) -> str:
    return UNMEASURED if quantiles is None else f"{number(quantiles.p50)} / {number(quantiles.p95)}"


def _frontier(answer: PlanAnswer) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("BUDGET J", "VALUE", "CANDIDATES"):
        table.add_column(heading)
    for row in answer.frontier:
        value = "nothing fits" if row.value is None else f"{row.value:.4f}"
        table.add_row(number(row.energy_budget_j), value, printable(", ".join(row.experts)))
    return table
