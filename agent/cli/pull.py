"""`moe2-agent pull` and `moe2-agent remove`: models into this host's folder, and out of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.library import Library
from moe2.agent.models.pulling import Pull, supply_of
from moe2.agent.settings import AgentSettings
from moe2.common.modelsource import HubSource, source_of
from moe2.common.secretfile import read_secret
from moe2.common.terminal.figures import printable, size
from moe2.common.terminal.output import say, transfer_bars


def library_of(settings: AgentSettings) -> Library:
    """The folder of models that the configuration names."""
    return Library(settings.agent.state_dir, settings.models_from.folder)


def run_pull(settings: AgentSettings, text: str, *, token_file: Path | None, context_tokens: int) -> int:
    """Pull a model; returns the exit code. Raises `Moe2Error` with the reason where it cannot be had."""
    source = source_of(text)
    token_file = token_file or settings.models_from.hub_token_file
    token = read_secret(token_file) if token_file is not None and isinstance(source, HubSource) else None
    library = library_of(settings)
    with transfer_bars() as bar:
        task = bar.add_task(printable(source.name), total=None)
        pull = Pull(
            library,
            ChecksumStore(settings.agent.state_dir),
            supply_of(source, token),
            say=say,
            progress=lambda done, whole: bar.update(task, completed=done, total=whole),
            context_tokens=context_tokens,
        )
        entry = asyncio.run(pull.run())
    say(f"sha256 {entry.sha256}")
    say(f"{library.path(entry.name)}: {size(entry.size_bytes)}. To serve it, name this path in [[models]].")
    return 0


def run_remove(settings: AgentSettings, name: str, *, uses: Mapping[str, Sequence[Path]]) -> int:
    """Delete a model of the folder; returns the exit code.

    uses: the files in use by the models' names. Raises `Moe2Error` where it is served or not there.
    """
    say(library_of(settings).discard(name, uses))
    return 0
