"""The command line of `moe2-coordinator`: parses the arguments and runs the command."""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from types import ModuleType
from typing import Any

from moe2.common.logs import configure_logging
from moe2.common.secretfile import read_secret
from moe2.common.terminal.commandline import Command, Commands, add_config, add_run_and_check, execute, program
from moe2.common.terminal.needed_files import Needed, check_files
from moe2.common.terminal.output import say, tell
from moe2.common.tls.contexts import ServerFiles, load_server_files
from moe2.coordinator.cli import (
    agents,
    collect,
    database,
    evaluate,
    fleet,
    keys,
    ledger,
    models,
    plan,
    status,
    train,
    tune,
)
from moe2.coordinator.cli.contradictions import contradictions
from moe2.coordinator.daemon import CoordinatorDaemon
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.shared_trust import SharedRegister
from moe2.coordinator.fleet.register_file import RegisterFile, RegisterStore
from moe2.coordinator.gate.checkpoint import load_checkpoint
from moe2.coordinator.runtime import EventLoop, allow_open_files, collect_seldom, give_back_memory, share_processor
from moe2.coordinator.settings import DEFAULT_CONFIG_PATH, CoordinatorSettings, settings_of


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

    _add(
        commands,
        "status",
        status,
        help="show the fleet",
        description="Show the fleet: agents, experts, requests, and what is wrong, each with a remedy.",
        exits={0: "healthy", 1: "degraded", 2: "not running, or wrong usage"},
        examples=("# what is wrong, for a script", "moe2-coordinator status --json | jq '.warnings'"),
    )
    _add(
        commands,
        "plan",
        plan,
        help="show what the running coordinator would decide for a prompt; runs nothing",
        description="Show what the running coordinator would decide for a prompt, and why. Runs nothing.",
        exits={0: "an expert would answer", 1: "none would, or nobody could be asked; the reason is told"},
        examples=("moe2-coordinator plan 'Why is the sky blue?' --energy 20 --latency 5",),
    )

    fleet.add_commands(
        commands.add_parser(
            "fleet",
            help="who is awake: show it, send hosts to sleep, wake, pin and unpin them",
            description="Show who is awake and why, and say of single hosts that they sleep, wake or stay awake. "
            "`provisioning.mode` in the configuration says whether the coordinator does so by itself.",
        ).add_subparsers(required=True, metavar="COMMAND", title="commands")
    )

    models.add_commands(
        commands.add_parser(
            "models",
            help="which host has and serves which model: show it, add, change and remove them",
            description="Show which host has and serves which model, and change that while requests are answered. A "
            "host's configuration says whether it lets the coordinator do so ([models_from]).",
        ).add_subparsers(required=True, metavar="COMMAND", title="commands")
    )

    keys.add_arguments(
        commands.add_parser(
            "keys",
            help="make, list and revoke the apps' API keys",
            description="Make, list and revoke the apps' API keys. The running coordinator sees changes at once.",
        )
    )

    agents_command = commands.add_parser(
        "agents",
        help="manage which agents may connect: enrolment tokens, enrolled agents",
        description="Say which agents may connect: make tokens for new ones, list those that are enrolled, revoke one. "
        "Changes are seen by the running coordinator at once.",
    )
    agents.add_commands(
        agents_command.add_subparsers(required=True, metavar="COMMAND", title="commands"),
        add_options=lambda parser: add_config(parser, DEFAULT_CONFIG_PATH),
        open_=lambda arguments: _register(settings_of(arguments.config)),
    )

    database.add_commands(
        commands.add_parser(
            "database",
            help="the database that several coordinators share: make its tables, show who uses it",
            description="Look after the database that several coordinators of one fleet share (database.url).",
        ).add_subparsers(required=True, metavar="COMMAND", title="commands")
    )

    _add(
        commands,
        "train-gate",
        train,
        help="train a gate from recorded outcomes",
        description="Train a gate from recorded outcomes: which expert answered which prompt how well. Needs torch. "
        "The checkpoint is named in selection.gate; SIGHUP lets a running coordinator take it.",
    )
    _add(
        commands,
        "collect",
        collect,
        help="ask a question set of every live expert, as outcomes for train-gate",
        description="Ask a question set of every live expert and score the answers, as outcomes for train-gate. "
        "Stopped and started again, it goes on where it was.",
    )
    _add(
        commands,
        "tune",
        tune,
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
    _add(
        commands,
        "ledger",
        ledger,
        help="show or export what requests have cost, by key, expert, model or day",
        description="Show or export what requests have cost, by key, expert, model or day.",
    )
    _add(
        commands,
        "evaluate",
        evaluate,
        help="compare moe2's choice with baselines on held-out outcomes",
        description="Compare moe2's choice with simpler ones, and with the best there could be, on outcomes that the "
        "gate has not seen.",
    )
    return parser


def _add(commands: Commands[Command], name: str, module: ModuleType, **details: Any) -> None:
    """Adds a command, given the module that has its `add_arguments` and `run`."""
    command = commands.add_parser(name, **details)
    module.add_arguments(command)
    command.set_defaults(act=module.run)


def _register(settings: CoordinatorSettings) -> RegisterStore:
    """Returns where the register of agents is: in the database that coordinators share, or in this one's file."""
    if settings.database.url is not None:
        register = SharedRegister(Session(settings.database.url, name="moe2-coordinator agents"))
        register.refresh()
        return register
    return RegisterFile(settings.coordinator.state_dir)


def _run(arguments: argparse.Namespace) -> int:
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


def _check_config(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments.config)
    api, hub = settings.api, settings.agents
    if not arguments.without_files:
        check_files(_needed(settings))
    found = contradictions(settings)
    how = "a coordinator would start with it, but see below" if found else "good"
    say(f"{arguments.config}: {how}. Apps: {api.host}:{api.port}; agents: {hub.host}:{hub.port}.")
    for contradiction in found:
        tell(f"{arguments.config}: {contradiction}")
    return 0


def _needed(settings: CoordinatorSettings) -> list[Needed]:
    found = []
    if token_file := settings.agents.token_file:
        found.append(Needed("agents.token_file", (token_file,), lambda: read_secret(token_file)))
    for name, section in (("api", settings.api.tls), ("agents", settings.agents.tls)):
        if section is not None:
            paths = (section.certificate, section.key, section.client_ca)
            files = ServerFiles(*paths)
            found.append(Needed(f"{name}.tls", paths, partial(load_server_files, files)))
    if gate := settings.selection.gate:
        found.append(Needed("selection.gate", (gate,), lambda: load_checkpoint(gate)))
    return found


if __name__ == "__main__":
    main()
