"""A stand-in for jetson-stats' service: a process that publishes the same values to every client until it is
stopped.

`python -m tests.fakes.jtop_service SOCKET STATE` serves the JSON of the file STATE, read anew for every
sample, as lines on a Unix socket; it prints "ready" once it listens. The stand-in client is
`tests/fakes/jtop_client/jtop.py`.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from pathlib import Path


def main() -> None:
    path, state = sys.argv[1], Path(sys.argv[2])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            # A client that was killed is no reason to stop serving.
            with suppress(ConnectionError), client, client.makefile("rwb") as stream:
                # One sample per request of the client: time in tests is moved by who reads, not by a timer.
                for _ in iter(stream.readline, b""):
                    stream.write(state.read_bytes().replace(b"\n", b" ") + b"\n")
                    stream.flush()


if __name__ == "__main__":
    main()
