"""A hub's files, through the library that the hub itself provides. The one door to huggingface_hub.

It keeps to HF_ENDPOINT, HF_HUB_OFFLINE and the proxies of the environment, and knows the hub's refusals. The bytes are
fetched by `download.py` from where it leads to: releases of it from 2 on throw away what had come when their process
ends, and none of them stops where the other side sends without an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from moe2.agent.models.download import UNTRUSTED_REMEDY
from moe2.common.errors import Moe2Error

try:
    import huggingface_hub as hub
    from huggingface_hub import errors as hub_errors
except ImportError as error:
    raise Moe2Error(f"The hub needs a package that is missing ({error.name}).", remedy="Install moe2[pull].") from error

_NO_WAY_OUT = (
    "Where this host has no way out, let the coordinator bring the model: `moe2-coordinator models push FILE HOST`."
)


class HubError(Moe2Error):
    """The hub does not give the file."""


class HubAwayError(HubError):
    """The hub cannot be reached now."""


@dataclass(frozen=True)
class HubFile:
    """What the hub says of a file. headers: what its server must be shown. sha256: None for small files, which the hub
    keeps no SHA-256 of."""

    url: str
    headers: Mapping[str, str]
    revision: str
    size_bytes: int
    sha256: str | None


def look(repo: str, file: str, revision: str | None, token: str | None) -> HubFile:
    """Asks the hub about a file. Raises `HubError`."""
    with _explained(f"{repo}/{file}"):
        facts = hub.get_hf_file_metadata(hub.hf_hub_url(repo, file, revision=revision), token=token or False)
    if facts.size is None or facts.commit_hash is None:
        raise HubError(f"The hub does not say how large {repo}/{file} is.", remedy="Try again later.")
    etag = (facts.etag or "").lower()
    is_sha256 = len(etag) == 64 and all(digit in "0123456789abcdef" for digit in etag)
    # What the hub redirects to; the address itself would show the redirection's own few bytes.
    url, headers = facts.location, {}
    # A redirection leads to where files are stored, which must not see the token.
    if token and urlsplit(url)[:2] == urlsplit(hub.constants.ENDPOINT)[:2]:
        headers["Authorization"] = f"Bearer {token}"
    return HubFile(url, headers, facts.commit_hash, facts.size, etag if is_sha256 else None)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Says in our words what the library raises."""
    try:
        yield
    except hub_errors.OfflineModeIsEnabled as error:
        raise HubError(f"{what} cannot be pulled: HF_HUB_OFFLINE is set.", remedy=f"Unset it. {_NO_WAY_OUT}") from error
    except hub_errors.GatedRepoError as error:
        raise HubError(
            f"{what} is given only to those who have accepted its terms.",
            remedy="Accept them on the hub, and name a file with your token: --token-file.",
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise HubError(
            f"The hub has no repository for {what}, or it is a private one.",
            remedy="Check the name; a private one needs --token-file.",
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise HubError(
            f"The hub has no such revision of {what}.", remedy="Name a branch, a tag or a commit."
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise HubError(
            f"The hub's repository has no file {what}.", remedy="Look which GGUF files it has, and name one."
        ) from error
    except hub_errors.HfHubHTTPError as error:
        raise HubError(f"The hub refuses {what}: {error}.", remedy="Check the token, or try again later.") from error
    except ValueError as error:
        raise HubError(f"The hub's library does not accept {what}: {error}") from error
    except Exception as error:
        # Whatever its HTTP library raises, which is another one in each of its releases.
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in (
            "httpx",
            "httpx2",
            "httpcore",
            "requests",
            "urllib3",
        ):
            raise
        raise _of_connection(what, error) from error


def _of_connection(what: str, error: Exception) -> HubError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return HubError(f"The hub's certificate is not trusted: {error}.", remedy=UNTRUSTED_REMEDY)
    return HubAwayError(
        f"The hub could not be reached for {what}: {error or type(error).__name__}.",
        remedy=f"Pull again: it goes on where it was. {_NO_WAY_OUT}",
    )
