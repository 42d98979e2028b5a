"""The command `moe2-coordinator check-config`: whether a coordinator would start, and what contradicts itself."""

from __future__ import annotations

import argparse
from functools import partial

from moe2.common.secretfile import read_secret
from moe2.common.terminal.needed_files import Needed, check_files
from moe2.common.terminal.output import say, tell
from moe2.common.tls.contexts import ServerFiles, load_server_files
from moe2.coordinator.cli.contradictions import contradictions
from moe2.coordinator.gate.checkpoint import load_checkpoint
from moe2.coordinator.settings import CoordinatorSettings, settings_of


def check_config(arguments: argparse.Namespace) -> int:
    """Says what is wrong with the configuration and the files that it needs. Raises `Moe2Error` for the first fault."""
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
