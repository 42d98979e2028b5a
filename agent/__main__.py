"""The agent's command line: reads argv, configures logging, exits.

What a command needs is imported once it is called: with the whole daemon, `status` took five times as long to begin.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe2.agent.paths import DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH
from moe2.common.terminal.commandline import add_config, add_run_and_check, add_socket, execute, program

if TYPE_CHECKING:
    from moe2.agent.settings import AgentSettings


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
    from moe2.agent.settings import ENVIRONMENT_PREFIX, AgentSettings
    from moe2.common.config import load_settings

    return load_settings(AgentSettings, arguments.config, environment=os.environ, prefix=ENVIRONMENT_PREFIX)


def _run(arguments: argparse.Namespace) -> int:
    import asyncio

    from moe2.agent.daemon import AgentDaemon
    from moe2.common.logs import configure_logging

    settings = _load(arguments)
    configure_logging(settings.log.level)

    async def serve() -> None:
        await AgentDaemon(settings, load=lambda: _load(arguments)).run()

    asyncio.run(serve())
    return 0


def _check_config(arguments: argparse.Namespace) -> int:
    from moe2.agent.cli.check_config import check_config

    return check_config(arguments, _load(arguments))


def _status(arguments: argparse.Namespace) -> int:
    from moe2.agent.cli.status import show_status

    return show_status(arguments.socket, as_json=arguments.json, watch=arguments.watch)


def _bench(arguments: argparse.Namespace) -> int:
    from moe2.agent.cli.bench import run_bench
    from moe2.agent.daemon import ENGINE_ARGV
    from moe2.agent.settings import sensors_wanted
    from moe2.common.logs import configure_logging

    settings = _load(arguments)
    # The table is for people: what the engine says on its way does not belong between its lines.
    configure_logging("warning")
    sensors = sensors_wanted(settings.sensors)
    return run_bench(settings, sensors, ENGINE_ARGV, model=arguments.model, as_json=arguments.json)


def _models(arguments: argparse.Namespace) -> int:
    from moe2.agent.cli.models import show_models

    return show_models(arguments.socket, as_json=arguments.json)


def _pull(arguments: argparse.Namespace) -> int:
    from moe2.agent.cli.pull import run_pull

    settings = _load(arguments)
    return run_pull(settings, arguments.source, token_file=arguments.token_file, context_tokens=arguments.context)


def _remove(arguments: argparse.Namespace) -> int:
    from moe2.agent.cli.pull import run_remove
    from moe2.agent.supply.served import ServedFile, uses

    settings = _load(arguments)
    return run_remove(settings, arguments.name, uses=uses(settings, ServedFile(settings.agent.state_dir).read()))


def _doctor(arguments: argparse.Namespace) -> int:
    from moe2.agent.cli.doctor import run_doctor
    from moe2.agent.energy.catalog import SensorSettings
    from moe2.agent.settings import sensors_wanted

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
