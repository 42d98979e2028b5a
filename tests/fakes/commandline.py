"""Runs commands of both programs in a process that was started under odd conditions, such as another locale.

The process imports both programs once and forks for each command: what an interpreter is given at its start (locale,
streams, capabilities) is real, and a command costs milliseconds. Its two arguments are descriptors: each line of the
first is a JSON object {"program", "arguments", "stderr", "stdout"}, each line of the second a command's wait status.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

MAX_S = 30


def _become(order: dict[str, Any], *ours: int) -> None:
    """Have the streams and arguments that the order names."""
    signal.alarm(MAX_S)
    errors = os.open(order["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 2)
    os.close(errors)
    if order["stdout"] == "broken pipe":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        os.close(writer)
    elif order["stdout"] is not None:
        output = os.open(order["stdout"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.close(output)
    # What Python knew of the former files, such as whether they can be sought in, holds no more.
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None:
            opened = open(descriptor, "w", encoding=stream.encoding, errors=stream.errors, closefd=False)  # noqa: SIM115
            setattr(sys, name, opened)
    for descriptor in ours:
        os.close(descriptor)
    sys.argv = [f"moe2-{order['program']}", *order["arguments"]]


def main() -> None:
    """Serve orders until there are no more; in a forked child, be the command."""
    from moe2.agent import cli as agent_cli
    from moe2.agent.__main__ import main as agent
    from moe2.coordinator import cli as coordinator_cli
    from moe2.coordinator.__main__ import main as coordinator

    # What a command imports when it is called, so that not each child has to.
    for cli in (agent_cli, coordinator_cli):
        for module in iter_modules(cli.__path__, f"{cli.__name__}."):
            import_module(module.name)
    programs = {"agent": agent, "coordinator": coordinator}
    # A child that ends would look through, and so copy, all that was imported: 0.2 s a command.
    gc.freeze()
    asked, answered = (int(argument) for argument in sys.argv[1:])
    with open(asked, encoding="utf-8", closefd=False) as orders:
        while line := orders.readline():
            child = os.fork()
            if child == 0:
                order = json.loads(line)
                _become(order, asked, answered)
                programs[order["program"]]()
                return
            _, status = os.waitpid(child, 0)
            os.write(answered, f"{status}\n".encode())


if __name__ == "__main__":
    main()
