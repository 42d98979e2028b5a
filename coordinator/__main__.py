"""The command line of `moe2-coordinator`: parses the arguments and runs the command."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys

from moe2.common.config import load_settings
from moe2.common.logs import configure_logging
from moe2.common.terminal.commandline import add_config, add_run_and_check, add_socket, execute, program
from moe2.coordinator.cli import agents as enrolment_commands
from moe2.coordinator.cli import collect as collecting_commands
from moe2.coordinator.cli import evaluate as evaluation_commands
from moe2.coordinator.cli import keys as access_commands
from moe2.coordinator.cli import ledger as ledger_commands
from moe2.coordinator.cli import train as gating_commands
from moe2.coordinator.cli.accuracy import show_calibration
from moe2.coordinator.cli.plan import show_plan
from moe2.coordinator.cli.status import show_status
from moe2.coordinator.daemon import CoordinatorDaemon
from moe2.coordinator.fleet.register_file import RegisterFile
from moe2.coordinator.runtime import EventLoop, allow_open_files
from moe2.coordinator.settings import DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH, ENVIRONMENT_PREFIX, CoordinatorSettings


def main() -> None:
    """Runs `moe2-coordinator` and exits with the command's status."""
    sys.exit(execute(_parser()))


def _parser() -> argparse.ArgumentParser:
    parser, commands = program(
        "moe2-coordinator",
        "Serve a fleet of moe2 agents as one OpenAI-compatible service, within measured energy and latency budgets. "
        "`moe2-coordinator COMMAND --help` explains a command, docs/settings.md the configuration.",
    )

    add_run_and_check(commands, "coordinator", DEFAULT_CONFIG_PATH, run=_run, check_config=_check_config)

    status = commands.add_parser(
        "status",
        help="show the fleet",
        description="Show the fleet: agents, experts, requests, and what is wrong, each with a remedy.",
        exits={0: "healthy", 1: "degraded", 2: "not running, or wrong usage"},
        examples=("# what is wrong, for a script", "moe2-coordinator status --json | jq '.warnings'"),
    )
    status.add_argument("--json", action="store_true", help="the whole status as one JSON document")
    status.add_argument("--watch", action="store_true", help="keep showing it until Ctrl-C")
    status.add_argument(
        "--calibration", action="store_true", help="show how accurate the predictions of recent requests were, instead"
    )
    add_socket(status, DEFAULT_SOCKET_PATH)
    status.set_defaults(act=_status)

    plan = commands.add_parser(
        "plan",
        help="show what the running coordinator would decide for a prompt; runs nothing",
        description="Show what the running coordinator would decide for a prompt, and why. Runs nothing.",
        exits={0: "an expert would answer", 1: "none would, or nobody could be asked; the reason is told"},
        examples=("moe2-coordinator plan 'Why is the sky blue?' --energy 20 --latency 5",),
    )
    plan.add_argument("prompt", help="the user's message")
    plan.add_argument("--model", default="moe2", help="default: %(default)s, any model")
    plan.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    plan.add_argument("--energy", type=float, metavar="J", help="energy budget in joules")
    plan.add_argument("--latency", type=float, metavar="S", help="seconds until the last token")
    plan.add_argument("--ttft", type=float, metavar="S", help="seconds until the first token")
    plan.add_argument("--quantile", choices=("p50", "p95"), help="which prediction the limits hold for")
    plan.add_argument("--max-experts", type=int, metavar="N", help="largest number of candidates kept")
    plan.add_argument("--mode", choices=("auto", "route", "vote", "rank", "mix"), help="how experts work together")
    plan.add_argument("--choice", action="append", metavar="TEXT", help="a possible answer; repeat it for each")
    plan.add_argument("--category", help="whose default budgets apply")
    plan.add_argument("--json", action="store_true", help="the plan as one JSON document")
    add_socket(plan, DEFAULT_SOCKET_PATH)
    plan.set_defaults(act=_plan)

    access_commands.add_arguments(
        commands.add_parser(
            "keys",
            help="make, list and revoke the apps' API keys",
            description="Make, list and revoke the apps' API keys. The running coordinator sees changes at once.",
        )
    )

    agents = commands.add_parser(
        "agents",
        help="manage which agents may connect: enrolment tokens, enrolled agents",
        description="Say which agents may connect: make tokens for new ones, list those that are enrolled, revoke one. "
        "Changes are seen by the running coordinator at once.",
    )
    enrolment_commands.add_commands(
        agents.add_subparsers(required=True, metavar="COMMAND", title="commands"),
        add_options=lambda parser: add_config(parser, DEFAULT_CONFIG_PATH),
        open_=lambda arguments: RegisterFile(_load(arguments).coordinator.state_dir),
    )

    train = commands.add_parser(
        "train-gate",
        help="train a gate from recorded outcomes",
        description="Train a gate from recorded outcomes: which expert answered which prompt how well. Needs torch. "
        "The checkpoint is named in selection.gate; SIGHUP lets a running coordinator take it.",
    )
    gating_commands.add_arguments(train)
    train.set_defaults(act=gating_commands.run)

    collect = commands.add_parser(
        "collect",
        help="ask a question set of every live expert, as outcomes for train-gate",
        description="Ask a question set of every live expert and score the answers, as outcomes for train-gate. "
        "Stopped and started again, it goes on where it was.",
    )
    collecting_commands.add_arguments(collect)
    collect.set_defaults(act=collecting_commands.run)

    ledger = commands.add_parser(
        "ledger",
        help="show or export what requests have cost, by key, expert, model or day",
        description="Show or export what requests have cost, by key, expert, model or day.",
    )
    ledger_commands.add_arguments(ledger)
    ledger.set_defaults(act=ledger_commands.run)

    evaluate = commands.add_parser(
        "evaluate",
        help="compare moe2's choice with baselines on held-out outcomes",
        description="Compare moe2's choice with simpler ones, and with the best there could be, on outcomes that the "
        "gate has not seen.",
    )
    evaluation_commands.add_arguments(evaluate)
    evaluate.set_defaults(act=evaluation_commands.run)
    return parser


def _load(arguments: argparse.Namespace) -> CoordinatorSettings:
    return load_settings(CoordinatorSettings, arguments.config, environment=os.environ, prefix=ENVIRONMENT_PREFIX)


def _run(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    configure_logging(settings.log.level)
    allow_open_files()

    async def serve() -> None:
        daemon = CoordinatorDaemon(settings, load=lambda: _load(arguments))
        # What is loaded now stays for good: without this each full collection walks over all modules, for milliseconds.
        gc.collect()
        gc.freeze()
        await daemon.run()

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(serve())
    return 0


def _check_config(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    api, agents = settings.api, settings.agents
    print(f"{arguments.config}: good. Apps: {api.host}:{api.port}; agents: {agents.host}:{agents.port}.")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    show = show_calibration if arguments.calibration else show_status
    return show(arguments.socket, as_json=arguments.json, watch=arguments.watch)


def _plan(arguments: argparse.Namespace) -> int:
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


if __name__ == "__main__":
    main()
