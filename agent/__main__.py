"""The agent's command line: reads argv, configures logging, exits."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from moe2.agent.cli.bench import run_bench
from moe2.agent.cli.doctor import run_doctor
from moe2.agent.cli.models import show_models
from moe2.agent.cli.pull import run_pull, run_remove
from moe2.agent.cli.status import show_status
from moe2.agent.daemon import ENGINE_ARGV, AgentDaemon
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.engine.llama.vocabularies import vocabularies_of
from moe2.agent.link.credential import FILE_NAME as CREDENTIAL_FILE
from moe2.agent.link.credential import check_enrolment
from moe2.agent.settings import (
    DEFAULT_CONFIG_PATH,
    DEFAULT_SOCKET_PATH,
    ENVIRONMENT_PREFIX,
    AgentSettings,
    ModelSection,
    sensors_wanted,
)
from moe2.agent.supply.served import ServedFile, choices, lines, uses
from moe2.common.config import load_settings
from moe2.common.errors import Moe2Error
from moe2.common.logs import configure_logging
from moe2.common.terminal.commandline import add_config, add_run_and_check, add_socket, execute, program
from moe2.common.terminal.needed_files import Needed, check_files
from moe2.common.terminal.output import say
from moe2.common.tls.contexts import client_context


def main() -> None:
    """Entry point of `moe2-agent`."""
    sys.exit(execute(_parser()))


def _parser() -> argparse.ArgumentParser:
    parser, commands = program(
        "moe2-agent",
        "Serve quantized GGUF models of this host to a moe2 coordinator, and measure what each answer costs. "
        "`moe2-agent COMMAND --help` explains a command, docs/settings.md the configuration.",
    )

    add_run_and_check(commands, "agent", DEFAULT_CONFIG_PATH, run=_run, check_config=_check_config)

    status = commands.add_parser(
        "status",
        help="show what the running agent does",
        description="Show the running agent: its link, sensors and models, and what is wrong, each with a remedy.",
        exits={0: "healthy", 1: "degraded", 2: "not running, or wrong usage"},
        examples=("# what is wrong, for a script", "moe2-agent status --json | jq '.warnings'"),
    )
    status.add_argument("--json", action="store_true", help="the whole status as one JSON document")
    status.add_argument("--watch", action="store_true", help="keep showing it until Ctrl-C")
    add_socket(status, DEFAULT_SOCKET_PATH)
    status.set_defaults(act=_status)

    models = commands.add_parser(
        "models",
        help="list the models that the running agent serves",
        description="List the models that the running agent serves, with their states, files and checksums.",
        exits={0: "shown", 1: "not understood, or it cannot be written", 2: "not running, or wrong usage"},
    )
    models.add_argument("--json", action="store_true", help="the models as one JSON list")
    add_socket(models, DEFAULT_SOCKET_PATH)
    models.set_defaults(act=_models)

    pull = commands.add_parser(
        "pull",
        help="fetch a model into this host's folder of models",
        description="Fetch a GGUF model into this host's folder of models: from a hub, from an address with its "
        "checksum, or from a path. Room on the disk and llama.cpp's knowledge of the model are checked before it "
        "starts; what was cut off goes on where it was.",
        examples=(
            "moe2-agent pull hf:bartowski/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q4_K_M.gguf",
            "moe2-agent pull https://models.example/small.gguf#sha256=…",
            "moe2-agent pull /mnt/usb/small.gguf",
        ),
    )
    pull.add_argument(
        "source", metavar="SOURCE", help="hf:ORG/REPO/FILE.gguf[@REVISION], https://…#sha256=…, or a path"
    )
    pull.add_argument("--token-file", type=Path, metavar="FILE", help="file with a token for the hub")
    pull.add_argument(
        "--context", type=int, default=4096, metavar="TOKENS", help="context that memory is checked for; %(default)s"
    )
    add_config(pull, DEFAULT_CONFIG_PATH)
    pull.set_defaults(act=_pull)

    remove = commands.add_parser(
        "remove",
        help="delete a model from this host's folder of models",
        description="Delete a model from this host's folder of models. One that is served is not deleted.",
    )
    remove.add_argument("name", metavar="NAME", help="its file, as `moe2-agent models` shows it")
    add_config(remove, DEFAULT_CONFIG_PATH)
    remove.set_defaults(act=_remove)

    doctor = commands.add_parser(
        "doctor",
        help="probe this host's sensors and GPU, and say what can be used",
        description="Probe all power sensors and the GPU of this host, and say what to do about those that cannot be "
        "used. As root it asks with the user, the groups and the sandbox of the installed service.",
        exits={0: "energy can be measured, a GPU used", 1: "one of them cannot, or something was refused"},
    )
    doctor.add_argument("--json", action="store_true", help="what was found as one JSON document")
    doctor.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="where /sys and /proc are looked for"
    )
    doctor.add_argument(
        "--config", type=Path, metavar="FILE", help=f"whose [sensors] to follow; default: {DEFAULT_CONFIG_PATH}, if any"
    )
    doctor.add_argument("--own-rights", action="store_true", help="ask with this process's rights, also as root")
    doctor.set_defaults(act=_doctor)

    bench = commands.add_parser(
        "bench",
        help="measure one model's speed and energy, and keep the result for the agent",
        description="Measure one model on a short fixed workload; the agent must not run meanwhile. About a minute on a"
        " fast host. The agent begins with the result when it is started next.",
        exits={0: "measured and kept", 1: "failed; the reason is on standard error"},
    )
    add_config(bench, DEFAULT_CONFIG_PATH)
    bench.add_argument("--model", metavar="NAME", help="a model of the configuration; default: its first one")
    bench.add_argument("--json", action="store_true", help="the result as one JSON document")
    bench.set_defaults(act=_bench)
    return parser


def _load(arguments: argparse.Namespace) -> AgentSettings:
    return load_settings(AgentSettings, arguments.config, environment=os.environ, prefix=ENVIRONMENT_PREFIX)


def _run(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    configure_logging(settings.log.level)

    async def serve() -> None:
        await AgentDaemon(settings, load=lambda: _load(arguments)).run()

    asyncio.run(serve())
    return 0


def _check_config(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    if not arguments.without_files:
        check_files(_needed(settings))
    found = choices(settings, ServedFile(settings.agent.state_dir).read())
    models = ", ".join(choice.name for choice in found if choice.section is not None) or "none yet"
    say(f"{arguments.config}: good. Models: {models}; coordinator: {', '.join(settings.coordinator.addresses)}.")
    for line in lines(found):
        say(line)
    _check_drafts({choice.name: choice.section for choice in found if choice.section is not None})
    return 0


def _needed(settings: AgentSettings) -> list[Needed]:
    link, state_dir = settings.coordinator, settings.agent.state_dir
    token = Needed(
        "coordinator.token_file",
        (state_dir / CREDENTIAL_FILE, link.token_file),
        lambda: check_enrolment(state_dir, link.token_file),
    )
    if not any(address.startswith("wss:") for address in link.addresses):
        return [token]
    files = (link.ca_file, link.certificate, link.key)
    tls = Needed(
        "coordinator.ca_file, certificate, key",
        files,
        lambda: client_context(ca_file=link.ca_file, certificate=link.certificate, key=link.key),
    )
    return [token, tls]


def _check_drafts(served: Mapping[str, ModelSection]) -> None:
    """Compares the vocabularies of models and their draft models. Raises `Moe2Error` where two differ."""
    for name, section in served.items():
        draft = served.get(section.draft or "")
        if draft is None:
            continue
        try:
            own, other = vocabularies_of((section.path, draft.path))
        except Moe2Error as error:
            say(f"{name}: whether {draft.name} has its vocabulary is not known: {error}")
            continue
        if own is None or other is None:
            unread = section.path if own is None else draft.path
            say(f"{name}: whether {draft.name} has its vocabulary is not known, as {unread} cannot be read.")
        elif own != other:
            raise Moe2Error(
                f"{draft.name} cannot guess for {name}: they have different vocabularies, so tokens mean other texts.",
                remedy="Name a smaller model of the same family as `draft`, or remove it.",
            )


def _status(arguments: argparse.Namespace) -> int:
    return show_status(arguments.socket, as_json=arguments.json, watch=arguments.watch)


def _bench(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    # The table is for people: what the engine says on its way does not belong between its lines.
    configure_logging("warning")
    sensors = sensors_wanted(settings.sensors)
    return run_bench(settings, sensors, ENGINE_ARGV, model=arguments.model, as_json=arguments.json)


def _models(arguments: argparse.Namespace) -> int:
    return show_models(arguments.socket, as_json=arguments.json)


def _pull(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    return run_pull(settings, arguments.source, token_file=arguments.token_file, context_tokens=arguments.context)


def _remove(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    return run_remove(settings, arguments.name, uses=uses(settings, ServedFile(settings.agent.state_dir).read()))


def _doctor(arguments: argparse.Namespace) -> int:
    settings = _settings_to_examine(arguments)
    # All kinds of sensors where there is no configuration to read.
    sensors = SensorSettings() if settings is None else replace(sensors_wanted(settings.sensors), simulated=None)
    return run_doctor(
        replace(sensors, root=arguments.root),
        as_json=arguments.json,
        own_rights=arguments.own_rights,
        config=arguments.config,
        state_dir=None if settings is None else settings.agent.state_dir,
    )


def _settings_to_examine(arguments: argparse.Namespace) -> AgentSettings | None:
    """The configuration that is named, or the installed one; None where that cannot be read."""
    if arguments.config is None and not os.access(DEFAULT_CONFIG_PATH, os.R_OK):
        return None
    return _load(argparse.Namespace(config=arguments.config or DEFAULT_CONFIG_PATH))


if __name__ == "__main__":
    main()
