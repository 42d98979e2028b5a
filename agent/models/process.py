"""A pull in a process of its own: `python -m moe2.agent.models.process`, an errand on stdin, lines of JSON on stdout.

So the daemon has neither the hub's library in it nor a download that it cannot end. The process ends with its stdin.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import msgspec

from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.library import Library
from moe2.agent.models.pulling import Pull, supply_of
from moe2.common.errors import Moe2Error
from moe2.common.modelsource import HubSource, is_allowed, leads_into, source_of
from moe2.common.secretfile import read_secret

TELL_EVERY_S = 0.5
CONTEXT_TOKENS = 4096
"""What memory is checked for, which is told and refuses nothing."""


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be pulled where, and within which bounds: as in `[models_from]`.

    pending_bytes: what is promised already of `max_bytes`.
    """

    source: str
    state_dir: str
    folder: str | None
    pull_from: tuple[str, ...]
    max_bytes: int | None
    pending_bytes: int
    hub_token_file: str | None


class Word(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the process that pulls a model tells: how far it is, a line for people, and at last its end.

    fault, remedy: why it failed. is_done: the model is in the folder.
    """

    done_bytes: int | None = None
    size_bytes: int | None = None
    line: str | None = None
    fault: str | None = None
    remedy: str | None = None
    is_done: bool = False


def main() -> int:
    """Pull the model that the first line of standard input names, and tell on standard output how it goes."""
    errand = msgspec.json.decode(sys.stdin.buffer.readline(), type=Errand)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        asyncio.run(_run(errand))
    except Moe2Error as error:
        _tell(Word(fault=error.message, remedy=error.remedy))
    except OSError as error:
        _tell(Word(fault=f"{error.filename or errand.folder} cannot be used: {error.strerror or error}."))
    return 0


async def _run(errand: Errand) -> None:
    source = source_of(errand.source)
    if not is_allowed(source, errand.pull_from):
        raise Moe2Error(f"{source} is not among models_from.pull_from.")
    is_of_hub = isinstance(source, HubSource)
    token = read_secret(Path(errand.hub_token_file)) if is_of_hub and errand.hub_token_file is not None else None
    state_dir = Path(errand.state_dir)
    latest = Word()

    def progress(done_bytes: int, size_bytes: int) -> None:
        nonlocal latest
        latest = Word(done_bytes=done_bytes, size_bytes=size_bytes)

    async def tell_progress() -> None:
        told = latest
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            if latest != told:
                _tell(told := latest)

    pull = Pull(
        Library(state_dir, Path(errand.folder) if errand.folder is not None else None),
        ChecksumStore(state_dir),
        supply_of(source, token, may_lead=lambda url: leads_into(url, errand.pull_from)),
        say=lambda line: _tell(Word(line=line)),
        progress=progress,
        context_tokens=CONTEXT_TOKENS,
        max_bytes=errand.max_bytes,
        pending_bytes=errand.pending_bytes,
    )
    telling = asyncio.create_task(tell_progress())
    try:
        await pull.run()
    finally:
        telling.cancel()
    _tell(latest)
    _tell(Word(is_done=True))


def _tell(word: Word) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_stdin() -> None:
    """The daemon is gone, or does not want it any more. What has come stays."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
