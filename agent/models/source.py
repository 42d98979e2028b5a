"""Where a model is pulled from, as people write it. PURE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from moe2.common.errors import Moe2Error

MAX_NAME_BYTES = 200
_HUB = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<file>[^@]+\.gguf)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)
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
        return self.url


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
    try:
        scheme = urlsplit(text).scheme
    except ValueError as error:
        raise SourceError(f"{text!r} is no address: {error}.", remedy=_REMEDY) from None
    if scheme in ("http", "https"):
        return _url(text)
    if scheme and "://" in text:
        raise SourceError(f"Models cannot be pulled by {scheme}.", remedy=_REMEDY)
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
    parts = urlsplit(text)
    found = _SHA256.fullmatch(parts.fragment)
    if found is None:
        raise SourceError(
            "What comes from an address is taken only with its checksum.",
            remedy="Write #sha256= and the file's SHA-256 behind the address.",
        )
    if not parts.hostname:
        raise SourceError(f"{text!r} names no host.", remedy=_REMEDY)
    return UrlSource(
        parts._replace(fragment="").geturl(),
        found["digest"].lower(),
        checked_name(PurePosixPath(unquote(parts.path)).name),
    )
