"""A stand-in for the client module of jetson-stats, with its property names and units, over
`tests.fakes.jtop_service`.

FAKE_JTOP_SOCKET names the service's socket. A missing one is a service that is not active.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any


class JtopException(Exception):  # noqa: N818 - the name of the class that it stands in for
    """What the client raises when it cannot have the service."""


class _PowerModel:
    def __init__(self, name: str) -> None:
        self.name = name


class jtop:  # noqa: N801 - the name of the class that it stands in for
    def __init__(self, interval: float = 0.5) -> None:
        self.interval = interval
        self._values: dict[str, Any] = {}

    def __enter__(self) -> jtop:
        path = os.environ["FAKE_JTOP_SOCKET"]
        if path == "forbidden":
            raise JtopException("I can't access the service")
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise JtopException("the service is not active") from None
        self._stream = self._socket.makefile("rwb")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def ok(self) -> bool:
        self._stream.write(b"next\n")
        self._stream.flush()
        line = self._stream.readline()
        if not line:
            raise JtopException("lost the service")
        self._values = json.loads(line)
        self.interval = self._values.get("interval", self.interval)
        return True

    @property
    def power(self) -> dict[str, Any]:
        return self._values["power"]  # type: ignore[no-any-return]

    @property
    def temperature(self) -> dict[str, Any]:
        return self._values["temperature"]  # type: ignore[no-any-return]

    @property
    def memory(self) -> dict[str, Any]:
        return self._values["memory"]  # type: ignore[no-any-return]

    @property
    def fan(self) -> dict[str, Any]:
        return self._values["fan"]  # type: ignore[no-any-return]

    @property
    def nvpmodel(self) -> _PowerModel | None:
        name = self._values.get("nvpmodel")
        return _PowerModel(name) if name else None
