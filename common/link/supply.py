"""The wire messages about models and their hosts: which files a host has, and what it serves of them.

An agent takes these orders only where its report says so (`ModelStore.takes_orders`, `pull_from`, `deletes`); agents of
earlier releases send no `ModelStore`, or none with that word in it, and are sent none of them. Each order is answered
by one `CommandAnswer`, as the commands are that load and unload models.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_FILES = 1024
"""Of one report."""
Text = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0, le=1 << 60)]
CacheType = Literal["f16", "q8_0", "q4_0"]


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model in a host's folder of models.

    name: of its file, the first one where it is split. size_bytes, sha256: of all its files, one after the other.
    origin: where it came from. served_as: names of the models that are served from it.
    """

    name: Text
    size_bytes: Count
    sha256: Text
    origin: Annotated[str, Meta(max_length=2048)]
    added_unix_s: float
    licence: Text | None = None
    architecture: Text | None = None
    last_used_unix_s: float | None = None
    served_as: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()


class Fetching(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model on its way to a host. source: "coordinator", or the name of the neighbour that gives it."""

    file: Text
    sha256: Text
    done_bytes: Count
    size_bytes: Count
    source: Text = "coordinator"


class Pulling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model that a host pulls because the coordinator has said so (`PullModel`).

    source: without what may be secret in it. size_bytes: None until the source has told it.
    """

    command_id: Text
    file: Text
    source: Annotated[str, Meta(max_length=2048)]
    done_bytes: Count = 0
    size_bytes: Count | None = None


class SharePoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where neighbours may take files of a host's folder, with a ticket for each.

    addresses: on which it listens, with their networks, such as "192.168.1.5/24". fingerprint: SHA-256 of the
    certificate that it shows, in hexadecimal; None where it speaks no TLS.
    """

    addresses: Annotated[tuple[Text, ...], Meta(max_length=64)]
    port: Annotated[int, Meta(ge=1, le=65_535)]
    fingerprint: Text | None = None


class ModelStore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host's models, as its agent knows them.

    takes_orders: the configuration lets the coordinator say what is served and send files. free_bytes: of the folder's
    disk. max_bytes: what the folder may hold in all; None for no limit. memory_free_bytes: what can be had without
    swapping. Unknown is None. swapping: names of models that are being added, changed or removed. networks: the host's
    addresses with their networks, where it may take files from neighbours; share: where they may take its own.
    pull_from: beginnings of the sources that the coordinator may have it pull from; deletes: whether it may have files
    deleted. Both None from agents that know no such orders.
    """

    takes_orders: bool = False
    free_bytes: Count | None = None
    max_bytes: Count | None = None
    memory_free_bytes: Count | None = None
    files: Annotated[tuple[ModelFile, ...], Meta(max_length=MAX_FILES)] = ()
    fetching: Annotated[tuple[Fetching, ...], Meta(max_length=MAX_FILES)] = ()
    swapping: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    networks: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    share: SharePoint | None = None
    pulling: Annotated[tuple[Pulling, ...], Meta(max_length=MAX_FILES)] = ()
    pull_from: Annotated[tuple[Annotated[str, Meta(max_length=2048)], ...], Meta(max_length=64)] | None = None
    deletes: bool | None = None


class ServeModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="serve_model"):
    """Coordinator to agent: serve this model from now on, or with other settings. Done when it is ready.

    file: in the host's folder of models; None: the file that it has now. sha256: what the file has to have. Other
    fields: as in `[[models]]`; None: as they are now, or the defaults.
    """

    command_id: Text
    name: Text
    file: Text | None = None
    sha256: Text | None = None
    context_tokens: Count | None = None
    slots: Count | None = None
    cache_type: CacheType | None = None
    gpu_layers: Annotated[int, Meta(ge=-1, le=1 << 20)] | None = None


class WithdrawModel(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="withdraw_model"
):
    """Coordinator to agent: serve this model no longer. Its running jobs end first; done when its memory is free."""

    command_id: Text
    name: Text


class FilePart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of a model. name: in the host's folder."""

    name: Text
    size_bytes: Count
    sha256: Text


class FetchModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="fetch_model"):
    """Coordinator to agent: fetch this model into your folder. Done when it is there and its checksums are right.

    The agent asks for a ticket (`TicketWanted`) for each connection that it opens. The same order again is the same
    fetch. sha256: of all parts, one after the other. origin: what the agent notes as where the model came from.
    """

    command_id: Text
    parts: Annotated[tuple[FilePart, ...], Meta(min_length=1, max_length=1024)]
    sha256: Text
    origin: Annotated[str, Meta(max_length=2048)]
    architecture: Text
    licence: Text | None = None


class TicketWanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="ticket_wanted"):
    """Agent to coordinator: I am ready to fetch this part of an order, or the rest of it.

    alone: from the coordinator itself, because a neighbour was slow, gone or wrong.
    """

    command_id: Text
    part: Annotated[int, Meta(ge=0, lt=1024)]
    alone: bool = False


class Ticket(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="ticket"):
    """Coordinator to agent: one request for this part, soon, and by nobody else.

    port, tls: of the listener for files, on the host that the agent's link leads to. address: of the neighbour that
    gives it instead, whose name is `source` and whose certificate has this fingerprint.
    """

    command_id: Text
    part: Annotated[int, Meta(ge=0, lt=1024)]
    secret: Text
    port: Annotated[int, Meta(ge=1, le=65_535)]
    tls: bool = False
    address: Text | None = None
    source: Text = "coordinator"
    fingerprint: Text | None = None


class LendFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="lend_file"):
    """Coordinator to agent: give a neighbour who shows this secret a part of a model in your folder, once and soon.

    Done when the neighbour may come. sha256: of the whole model. size_bytes: of the part.
    """

    command_id: Text
    sha256: Text
    part: Annotated[int, Meta(ge=0, lt=1024)]
    size_bytes: Count
    secret: Text


class PullModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="pull_model"):
    """Coordinator to agent: pull this model into your folder. Done when it is there and its checksums are right.

    source: as people write it (`moe2.common.modelsource`). The same order again is the same pull.
    """

    command_id: Text
    source: Annotated[str, Meta(max_length=2048)]


class DeleteFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="delete_file"):
    """Coordinator to agent: delete this model from your folder, or what has come of one that is not whole.

    sha256: what it has to have; None for one that the agent has not reported.
    """

    command_id: Text
    name: Text
    sha256: Text | None = None


TICKET_HEADER = "Moe2-Ticket"
FILES_PATH = "/v1/files"
"""Where the listener for files answers; which file is meant, the ticket says."""

SupplyOrder = ServeModel | WithdrawModel | FetchModel | LendFile | PullModel | DeleteFile
"""What an agent can be told about its models."""
