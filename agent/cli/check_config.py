"""The command `moe2-agent check-config`: whether an agent would start with a configuration, and what it would serve."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from moe2.agent.engine.llama.vocabularies import vocabularies_of
from moe2.agent.link.credential import FILE_NAME as CREDENTIAL_FILE
from moe2.agent.link.credential import check_enrolment
from moe2.agent.settings import AgentSettings, ModelSection
from moe2.agent.supply.served import ServedFile, choices, lines
from moe2.common.errors import Moe2Error
from moe2.common.terminal.needed_files import Needed, check_files
from moe2.common.terminal.output import say
from moe2.common.tls.contexts import client_context


def check_config(arguments: argparse.Namespace, settings: AgentSettings) -> int:
    """Says what is wrong with the settings and the files that they need. Raises `Moe2Error` for the first fault."""
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
