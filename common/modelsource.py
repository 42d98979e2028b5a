"""Where a model is pulled from, as people write it, and which sources a host lets the coordinator name. PURE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from moe2.common.errors import Moe2Error

MAX_NAME_BYTES = 200
_HUB = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<file>[^@]+\.gguf)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)
_PLACE = re.compile(r"(?P<host>[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
"""The host of an address, and nothing else: names as they are looked up, no user, no second meaning."""
_HUB_BEGINNING = re.compile(r"hf:([A-Za-z0-9][\w.-]*/){0,2}")
_PORTS = {"http": 80, "https": 443}
_SHA256 = re.compile(r"sha256=(?P<digest>[0-9a-fA-F]{64})")
_REMEDY = (
    "Write hf:ORG/REPO/FILE.gguf, with @REVISION behind it if not the newest is wanted, https://…/FILE.gguf#sha256=…, "
    "or the path of a file."
)


class SourceError(Moe2Error):
    """A source that cannot be understood, or a name that no file may have."""


@dataclass(frozen=True)
class HubSource:
    """A file of a repository on the hub. file: its path in the repository."""

    repo: str
    file: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """The file's name on this host."""
        return PurePosixPath(self.file).name

    def __str__(self) -> str:
        return f"hf:{self.repo}/{self.file}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class UrlSource:
    """A file behind an address, with the checksum that it must have."""

    url: str
    sha256: str
    name: str

    def __str__(self) -> str:
        return shown_address(self.url)


@dataclass(frozen=True)
class LocalSource:
    """A file of this host."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)


Source = HubSource | UrlSource | LocalSource


def source_of(text: str) -> Source:
    """Reads a source. Raises `SourceError`."""
    if text.startswith("hf:"):
        return _hub(text)
    scheme, is_address, _ = text.partition("://")
    if is_address and scheme.lower() in _PORTS:
        return _url(text)
    if is_address and scheme.isalnum():
        raise SourceError(f"Models cannot be pulled over {scheme}.", remedy=_REMEDY)
    if not text or "\0" in text:
        raise SourceError(f"{text!r} names no file.", remedy=_REMEDY)
    path = Path(text)
    checked_name(path.name)
    return LocalSource(path)


def checked_name(name: str) -> str:
    """Returns a file's name that may stand in the folder of models. Raises `SourceError`, also for a path."""
    is_plain = name.isprintable() and "/" not in name and "\\" not in name and not name.startswith((".", "-"))
    if not is_plain or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES or not name.endswith(".gguf"):
        raise SourceError(
            f"{name!r} cannot be a model's file here.",
            remedy=f"Its name must end in .gguf, be no path, begin with a letter or digit, and have at most "
            f"{MAX_NAME_BYTES} bytes.",
        )
    return name


def _hub(text: str) -> HubSource:
    found = _HUB.fullmatch(text)
    if found is None or ".." in PurePosixPath(found["file"]).parts or ".." in found["repo"]:
        raise SourceError(f"{text!r} names no GGUF file on the hub.", remedy=_REMEDY)
    checked_name(PurePosixPath(found["file"]).name)
    return HubSource(found["repo"], found["file"], found["revision"])


def _url(text: str) -> UrlSource:
    parts = _address(text)
    found = _SHA256.fullmatch(parts.fragment)
    if found is None:
        raise SourceError(
            "What comes from an address is taken only with its checksum.",
            remedy="Write #sha256= and the file's SHA-256 behind the address.",
        )
    return UrlSource(
        parts._replace(fragment="").geturl(),
        found["digest"].lower(),
        checked_name(PurePosixPath(unquote(parts.path)).name),
    )


def _address(text: str) -> SplitResult:
    """An address that means the same to everybody who reads it. Raises `SourceError`, which shows no secret of it."""
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise SourceError(f"This is no address: {error}.", remedy=_REMEDY) from None
    if "@" in parts.netloc:
        raise SourceError(
            "An address may hold no name and no password: it is shown and kept.",
            remedy="Take them out. For `moe2-agent pull` they may stand in ~/.netrc.",
        )
    found = _PLACE.fullmatch(parts.netloc)
    is_plain = text.isascii() and text.isprintable() and not set(text) & set(' \\"<>^`{|}')
    if found is None or not is_plain or int(found["port"] or 1) not in range(1, 65_536):
        raise SourceError(f"{shown_address(text)!r} is no address of a file.", remedy=_REMEDY)
    return parts


def shown_address(url: str) -> str:
    """An address without what may be secret in it: names, passwords, and what is asked for."""
    bare, asks, _ = url.partition("#")[0].partition("?")
    scheme, _, rest = bare.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}{asks and '?…'}"


def checked_beginning(text: str) -> str:
    """A beginning of sources that may be allowed, such as "hf:", "hf:ORG/" or "https://HOST/FOLDER/".

    Raises `ValueError` for any other text: what is allowed ends where a name ends.
    """
    if text.startswith("hf:"):
        if _HUB_BEGINNING.fullmatch(text):
            return text
    elif text.startswith(("http://", "https://")) and text.endswith("/"):
        try:
            parts = _address(text)
        except SourceError as error:
            raise ValueError(error.message) from None
        if not parts.query and not parts.fragment and "%" not in parts.path and not _climbs(parts.path):
            return text
    raise ValueError(f"{text!r} is none of hf:, hf:ORG/, hf:ORG/REPOSITORY/, https://HOST/ or https://HOST/FOLDER/")


def is_allowed(source: Source, beginnings: Iterable[str]) -> bool:
    """Whether a source's address begins with one of the allowed beginnings. A file on a host's own disk never does.

    beginnings: as `checked_beginning` returns them.
    """
    match source:
        case HubSource():
            place = f"hf:{source.repo}/{source.file}"
            return any(place.startswith(one) for one in beginnings if one.startswith("hf:"))
        case UrlSource():
            return leads_into(source.url, beginnings)
        case LocalSource():
            return False


def leads_into(url: str, beginnings: Iterable[str]) -> bool:
    """Whether an address is below one of the beginnings: of their scheme, host and port, and in their folder."""
    try:
        parts = _address(url)
    except SourceError:
        return False
    if _climbs(parts.path):
        return False
    for one in beginnings:
        allowed = urlsplit(one)
        if allowed.scheme in _PORTS and _server(allowed) == _server(parts) and parts.path.startswith(allowed.path):
            return True
    return False


def _server(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _climbs(path: str) -> bool:
    """Whether some server could take a path for one that leaves its folder, however it is written."""
    while (plain := unquote(path)) != path:
        path = plain
    return any(part.partition(";")[0] in (".", "..") for part in path.replace("\\", "/").split("/"))
