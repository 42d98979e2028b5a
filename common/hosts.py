"""Names of hosts and addresses as URLs and HTTP headers write them. PURE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

DEFAULT_PORTS = {"http": 80, "https": 443}

# What stands between a scheme and a path: a name or an address, and perhaps a port. An IPv6 address is in brackets.
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{0,5}))?", re.ASCII)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/]+)", re.ASCII)


def is_loopback(host: str) -> bool:
    """True for addresses that nobody else can reach. A name other than localhost counts as one that others can."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_ip_address(host: str) -> bool:
    """Whether a host is written as an address, so that no name had to be looked up to reach it."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def in_url(host: str) -> str:
    """Returns a host as URLs have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True)
class Authority:
    """The authority of a URL: the host and port that it leads to.

    host: in lower case, without brackets or a final dot. port: None where none is written.
    """

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Authority | None:
        """Read a Host header, RFC 9110 section 7.2; None for what is none."""
        found = _AUTHORITY.fullmatch(text.lower())
        if found is None:
            return None
        host = found["host"]
        if host.startswith("["):
            host = host[1:-1]
            if not is_ip_address(host):
                return None
        return cls(host.removesuffix("."), int(found["port"]) if found["port"] else None)


@dataclass(frozen=True)
class Origin:
    """Whose page makes a browser ask. port: the scheme's own where none is written; None where it has none."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Read an Origin header, RFC 6454 section 7; None for "null", the origin of nobody, and for what is none."""
        found = _ORIGIN.fullmatch(text.lower())
        authority = Authority.parse(found["authority"]) if found else None
        if found is None or authority is None:
            return None
        scheme = found["scheme"]
        port = DEFAULT_PORTS.get(scheme) if authority.port is None else authority.port
        return cls(scheme, authority.host, port)

    def is_at(self, authority: Authority) -> bool:
        """Whether the page came from there. The scheme does not count: a proxy may have put TLS in front."""
        port = DEFAULT_PORTS.get(self.scheme) if authority.port is None else authority.port
        return (self.host, self.port) == (authority.host, port)
