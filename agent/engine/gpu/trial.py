"""Tries llama.cpp in a child process: whether it could put layers on a GPU here. Blocking.

Loading CUDA may crash, and takes memory. The child is this module as a program; its answer is one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec

_WITHIN_S = 60.0
_WORDS_CHARACTERS = 300


class EngineTrial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which GPUs this build of llama.cpp can use, by its own word.

    backends: those that it was built with, without the processor's; None where it could not be asked, as `said` tells.
    offloads: it sees a GPU that it can use. said: what it complained about.
    """

    backends: tuple[str, ...] | None = None
    offloads: bool = False
    said: str = ""


def try_engine() -> EngineTrial:
    """Returns what llama.cpp says in a child process of this one's user and unit."""
    command = [sys.executable, "-m", "moe2.agent.engine.gpu.trial"]
    try:
        done = subprocess.run(  # noqa: S603 - our own program, no shell
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        return EngineTrial(said=f"llama.cpp did not answer within {_WITHIN_S:.0f} s")
    except OSError as error:
        return EngineTrial(said=f"llama.cpp could not be asked: {error}")
    try:
        told = json.loads(done.stdout.decode("utf-8", "replace").strip().splitlines()[-1])
        return EngineTrial(backends=tuple(told["backends"]), offloads=told["offloads"], said=told["said"])
    except (ValueError, LookupError, TypeError):
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        return EngineTrial(said=f"llama.cpp cannot be loaded: {words[0][-_WORDS_CHARACTERS:]}")


def main() -> None:
    """Ask llama.cpp within this process, and print its answer."""
    # Only the child loads llama.cpp.
    from moe2.agent.engine.llama.model import can_offload, engine_said, gpu_backends, start_backend

    stop = start_backend(lambda _: None)
    told = {"backends": gpu_backends(), "offloads": can_offload(), "said": engine_said()}
    stop()
    sys.stdout.write("\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
