"""Asks llama.cpp which GPU backends it was built with and whether it sees a GPU; prints the answer as a line of JSON.

A program of its own, run as a child by `moe2.agent.engine.gpu.trial`: loading CUDA may crash, and takes memory.
"""

from __future__ import annotations

import json
import sys

from moe2.agent.engine.model import can_offload, engine_said, gpu_backends, start_backend


def main() -> None:
    stop = start_backend(lambda _: None)
    told = {"backends": gpu_backends(), "offloads": can_offload(), "said": engine_said()}
    stop()
    sys.stdout.write("\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
