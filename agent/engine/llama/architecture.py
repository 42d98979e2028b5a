"""What this build of llama.cpp could load on this host now: `python -m moe2.agent.engine.llama.architecture NAME`.

A door to llama.cpp, and a process of its own: the agent's daemon has no llama.cpp in it. llama.cpp has no list of its
architectures, but it names one that it does not know before it looks at anything else; so it is asked with a file that
has nothing but the name.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import tempfile

import msgspec
from llama_cpp import llama_cpp as llama

from moe2.agent.engine.llama.admission import device_free_bytes
from moe2.agent.engine.llama.capacity import host_free_bytes
from moe2.agent.engine.llama.memory import Capacity

_TEXT, _VERSION = 8, 3


def main() -> int:
    """Print the answer as JSON."""
    name = sys.argv[1]
    offloads = llama.llama_supports_gpu_offload()
    answer = Capacity(
        knows=_knows(name),
        host_free_bytes=host_free_bytes(),
        device_free_bytes=device_free_bytes() if offloads else None,
    )
    sys.stdout.write(msgspec.json.encode(answer).decode())
    return 0


def _knows(name: str) -> bool:
    said: list[str] = []
    callback = llama.llama_log_callback(lambda _level, text, _: said.append(text.decode("utf-8", "replace")))
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    key, value = b"general.architecture", name.encode()
    content = struct.pack("<4sIQQ", b"GGUF", _VERSION, 0, 1)
    content += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", _TEXT, len(value)) + value
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        if pointer := llama.llama_model_load_from_file(file.name.encode(), parameters):
            llama.llama_model_free(pointer)
    return "unknown model architecture" not in "".join(said)


if __name__ == "__main__":
    sys.exit(main())
