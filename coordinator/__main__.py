"""The command line of `moe2-coordinator`: parses the arguments and runs the command.

What a command needs is imported once it is called: with the whole daemon, `status` took seven times as long to begin.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module

from moe2.common.terminal.commandline import Command, add_run_and_check, execute, program
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH


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

    commands.add_parser(
        "status",
        fill=_of("status"),
        help="show the fleet",
        description="Show the fleet: agents, experts, requests, and what is wrong, each with a remedy.",
        exits={0: "healthy", 1: "degraded", 2: "not running, or wrong usage"},
        examples=("# what is wrong, for a script", "moe2-coordinator status --json | jq '.warnings'"),
    )
    commands.add_parser(
        "plan",
        fill=_of("plan"),
        help="show what the running coordinator would decide for a prompt; runs nothing",
        description="Show what the running coordinator would decide for a prompt, and why. Runs nothing.",
        exits={0: "an expert would answer", 1: "none would, or nobody could be asked; the reason is told"},
        examples=("moe2-coordinator plan 'Why is the sky blue?' --energy 20 --latency 5",),
    )

    commands.add_parser(
        "fleet",
        fill=_of("fleet"),
        help="who is awake: show it, send hosts to sleep, wake, pin and unpin them",
        description="Show who is awake and why, and say of single hosts that they sleep, wake or stay awake. "
        "`provisioning.mode` in the configuration says whether the coordinator does so by itself.",
    )

    commands.add_parser(
        "models",
        fill=_of("models"),
        help="which host has and serves which model: show it, add, change and remove them",
        description="Show which host has and serves which model, and change that while requests are answered. A "
        "host's configuration says whether it lets the coordinator do so ([models_from]).",
    )

    commands.add_parser(
        "keys",
        fill=_of("keys"),
        help="make, list and revoke the apps' API keys",
        description="Make, list and revoke the apps' API keys. The running coordinator sees changes at once.",
    )

    commands.add_parser(
        "agents",
        fill=_of("agents"),
        help="manage which agents may connect: enrolment tokens, enrolled agents",
        description="Say which agents may connect: make tokens for new ones, list those that are enrolled, revoke one. "
        "Changes are seen by the running coordinator at once.",
    )

    commands.add_parser(
        "database",
        fill=_of("database"),
        help="the database that several coordinators share: make its tables, show who uses it",
        description="Look after the database that several coordinators of one fleet share (database.url).",
    )

    commands.add_parser(
        "train-gate",
        fill=_of("train"),
        help="train a gate from recorded outcomes",
        description="Train a gate from recorded outcomes: which expert answered which prompt how well. Needs torch. "
        "The checkpoint is named in selection.gate; SIGHUP lets a running coordinator take it.",
    )
    commands.add_parser(
        "collect",
        fill=_of("collect"),
        help="ask a question set of every live expert, as outcomes for train-gate",
        description="Ask a question set of every live expert and score the answers, as outcomes for train-gate. "
        "Stopped and started again, it goes on where it was.",
    )
    commands.add_parser(
        "tune",
        fill=_of("tune"),
        help="learn which model of the fleet is good at what: ask, train, install, in one go",
        description="Learn which model of the fleet is good at what. Asks every model about 300 short questions, "
        "trains a gate on the answers, shows what was gained, installs the gate, and has the running coordinator read "
        "it. Says before it starts what that will take. Stopped and started again, it goes on where it was.",
        exits={0: "the gate is in use", 1: "no gate was installed; the reason is told", 130: "stopped"},
        examples=(
            "moe2-coordinator tune --dry-run",
            "moe2-coordinator tune --max-j 5000 --max-minutes 60",
            "# a new model alone",
            "moe2-coordinator tune --model qwen2.5-3b",
        ),
    )
    commands.add_parser(
        "ledger",
        fill=_of("ledger"),
        help="show or export what requests have cost, by key, expert, model or day",
        description="Show or export what requests have cost, by key, expert, model or day.",
    )
    commands.add_parser(
        "evaluate",
        fill=_of("evaluate"),
        help="compare moe2's choice with baselines on held-out outcomes",
        description="Compare moe2's choice with simpler ones, and with the best there could be, on outcomes that the "
        "gate has not seen.",
    )
    return parser


def _of(module: str) -> Callable[[Command], None]:
    """Returns what imports a command's module of `moe2.coordinator.cli`, for its arguments and its act."""

    def fill(command: Command) -> None:
        import_module(f"moe2.coordinator.cli.{module}").add_arguments(command)

    return fill


def _check_config(arguments: argparse.Namespace) -> int:
    from moe2.coordinator.cli.check_config import check_config

    return check_config(arguments)


def _run(arguments: argparse.Namespace) -> int:
    import asyncio

    from moe2.common.logs import configure_logging
    from moe2.coordinator.daemon import CoordinatorDaemon
    from moe2.coordinator.runtime import EventLoop, allow_open_files, collect_seldom, give_back_memory, share_processor
    from moe2.coordinator.settings import settings_of

    settings = settings_of(arguments.config)
    configure_logging(settings.log.level)
    allow_open_files()
    share_processor()
    give_back_memory()

    async def serve() -> None:
        daemon = CoordinatorDaemon(settings, load=lambda: settings_of(arguments.config))
        collect_seldom()
        await daemon.run()

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(serve())
    return 0


if __name__ == "__main__":
    main()
