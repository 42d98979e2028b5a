"""Whether model files have one vocabulary, read without their weights by llama.cpp in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from moe2.common.errors import Moe2Error

_ARGV = (sys.executable, "-m", "moe2.agent.engine.llama.vocabularies")
_READ_S = 120.0


def vocabularies_of(paths: Sequence[Path]) -> tuple[str | None, ...]:
    """The digest of each file's vocabulary, equal exactly where tokens mean the same; None where it cannot be read.

    Blocks. Raises `Moe2Error` where llama.cpp cannot be asked.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            (*_ARGV, *map(str, paths)), capture_output=True, timeout=_READ_S, check=False
        )
        return msgspec.json.decode(done.stdout, type=tuple[str | None, ...])
    except (OSError, ValueError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        raise Moe2Error(
            "llama.cpp could not be asked about vocabularies.",
            remedy="Install moe2[agent]; `moe2-agent doctor` tells more.",
        ) from error


def main(paths: Sequence[str]) -> None:
    """Print the digests of the files' vocabularies as JSON."""
    # Imported here: whoever asks has no use for llama.cpp in its own process.
    from moe2.agent.engine.llama.model import start_backend, vocabulary_of_file

    stop = start_backend(lambda _: None)
    digests = [vocabulary_of_file(Path(path)) for path in paths]
    stop()
    sys.stdout.write(msgspec.json.encode(digests).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
