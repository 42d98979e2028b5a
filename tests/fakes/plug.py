"""A metered plug: a real HTTP server that answers as Shelly's and Tasmota's firmware do."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_REALM = "shellyplugsg3-aabbccddeeff"
_NONCE = "1732810000"


class FakePlug:
    """What the plug measures and how it behaves; a test changes it while it is asked.

    power_w: W; a list for a strip. total_wh: its counter. password: asked for where it is set. algorithm: of the
    digest that it asks for, in Shelly's manner; None: not named. challenge: sent instead. has_switch: a Shelly without
    one is asked another way. body, status: answered instead, whatever was asked. silent: no answer at all.
    """

    def __init__(self) -> None:
        self.power_w: Any = 57.3
        self.total_wh = 1234.567
        self.password: str | None = None
        self.algorithm: str | None = "SHA-256"
        self.challenge: str | None = None
        self.has_switch = True
        self.body: bytes | None = None
        self.status = 200
        self.silent = False
        self.asked: list[str] = []
        self.ended = threading.Event()
        self.url = ""

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        """The status, further headers and body for a GET."""
        self.asked.append(path)
        if self.silent:
            self.ended.wait()
        if self.body is not None:
            return self.status, {}, self.body
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/cm":
            return self._tasmota(query)
        if parts.path == ("/rpc/Switch.GetStatus" if self.has_switch else "/rpc/PM1.GetStatus"):
            return self._shelly(path, query, authorization)
        return 404, {}, b"No handler for " + parts.path.encode()

    def _shelly(self, path: str, query: dict[str, str], authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        if self.password is not None and not self._is_let_in(path, authorization or ""):
            challenge = f'Digest qop="auth", realm="{_REALM}", nonce="{_NONCE}"'
            challenge += f", algorithm={self.algorithm}" if self.algorithm else ""
            return 401, {"WWW-Authenticate": self.challenge or challenge}, b""
        channel = int(query["id"])
        power_w = self.power_w[channel] if isinstance(self.power_w, list) else self.power_w
        counter = {"total": self.total_wh, "by_minute": [955.0, 950.1, 951.2], "minute_ts": 1732810020}
        status = {"id": channel, "source": "init", "output": True, "apower": power_w, "voltage": 231.4, "current": 0.26}
        return 200, {}, json.dumps({**status, "aenergy": counter, "temperature": {"tC": 35.1}}).encode()

    def _is_let_in(self, path: str, authorization: str) -> bool:
        said = dict(re.findall(r'(\w+)="?([^",]+)"?', authorization))
        if not said:
            return False

        def hashed(text: str) -> str:
            kind = "sha256" if self.algorithm == "SHA-256" else "md5"
            return hashlib.new(kind, text.encode(), usedforsecurity=False).hexdigest()

        user = hashed(f"admin:{_REALM}:{self.password}")
        asked = hashed(f"GET:{path}")
        counted = f"{said['nc']}:{said['cnonce']}:{said['qop']}:" if "qop" in said else ""
        expected = hashed(f"{user}:{said['nonce']}:{counted}{asked}")
        return bool(said["response"] == expected and said["nonce"] == _NONCE)

    def _tasmota(self, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if self.password is not None and (query.get("user"), query.get("password")) != ("admin", self.password):
            return 200, {}, b'{"WARNING":"Need user=<username>&password=<password>"}'
        energy = {"TotalStartTime": "2026-01-01T00:00:00", "Total": self.total_wh / 1000, "Power": self.power_w}
        sensors = {"Time": "2026-11-28T18:00:00", "ENERGY": {**energy, "Voltage": 231, "Current": 0.26}}
        return 200, {}, json.dumps({"StatusSNS": sensors}).encode()


@contextmanager
def plugged_in(port: int = 0) -> Iterator[FakePlug]:
    """A plug that can be asked at its `url` meanwhile."""
    plug = FakePlug()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = plug.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Tests have no use for an access log."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that did not wait for a silent plug is no fault of the plug's."""

    server = Server(("127.0.0.1", port), Handler)
    plug.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield plug
    finally:
        plug.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
