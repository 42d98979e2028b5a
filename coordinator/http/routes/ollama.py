"""Ollama's API: the routes by which its clients ask for answers, and those that tell which models there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from moe2.common import __version__
from moe2.common.generation import MODEL_SAMPLING
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.access.upload import BODY
from moe2.coordinator.http.body.decode import json_object
from moe2.coordinator.http.body.ollama import OllamaModelRequest
from moe2.coordinator.http.body.parse import read_struct
from moe2.coordinator.http.errors import invalid
from moe2.coordinator.http.faces.face import Asked, Incoming
from moe2.coordinator.http.faces.ollama import (
    asked_chat,
    asked_generate,
    asked_vector,
    asked_vectors,
    moment,
)
from moe2.coordinator.http.paths import (
    OLLAMA_CHAT_PATH,
    OLLAMA_EMBED_PATH,
    OLLAMA_EMBEDDINGS_PATH,
    OLLAMA_GENERATE_PATH,
    OLLAMA_PS_PATH,
    OLLAMA_PULL_PATH,
    OLLAMA_SHOW_PATH,
    OLLAMA_TAGS_PATH,
    OLLAMA_VERSION_PATH,
)
from moe2.coordinator.http.routes.answering import Answering
from moe2.coordinator.http.routes.models import check_model, model_object

SPOKEN_VERSION = "0.12.11"
"""The release of Ollama whose API this is: apps look at it before they use what earlier ones did not have."""
_TAG = ":latest"
"""What Ollama's clients write behind a name without a tag."""
_MAX_LOAD_BYTES = 1024
"""A body that asks for nothing but that a model be loaded is short."""

Reader = Callable[[dict[str, Any], Incoming], Asked]


class OllamaRoutes:
    """The routes of Ollama's API that a fleet has an answer to; its files are no business of clients."""

    def __init__(self, answering: Answering, table: CapabilityTable) -> None:
        self._answering = answering
        self._table = table
        self._started_unix_s = time.time()

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        for path, read, asks in (
            (OLLAMA_CHAT_PATH, asked_chat, "messages"),
            (OLLAMA_GENERATE_PATH, asked_generate, "prompt"),
        ):
            app.router.add_post(path, self._or_load(self._answering.through(self._face(read)), asks))
        app.router.add_post(OLLAMA_EMBED_PATH, self._answering.through(self._face(self._vectors)))
        app.router.add_post(OLLAMA_EMBEDDINGS_PATH, self._answering.through(self._face(self._vector)))
        app.router.add_get(OLLAMA_TAGS_PATH, self._tags)
        app.router.add_get(OLLAMA_PS_PATH, self._running)
        app.router.add_post(OLLAMA_SHOW_PATH, self._show)
        app.router.add_post(OLLAMA_PULL_PATH, self._pull)
        app.router.add_get(OLLAMA_VERSION_PATH, self._version)

    def _vectors(self, fields: dict[str, Any], incoming: Incoming) -> Asked:
        return asked_vectors(fields, incoming, self._table)

    def _vector(self, fields: dict[str, Any], incoming: Incoming) -> Asked:
        return asked_vector(fields, incoming, self._table)

    def _face(self, read: Reader) -> Callable[[Incoming], Asked]:
        def face(incoming: Incoming) -> Asked:
            fields = json_object(incoming.body)
            if isinstance(fields.get("model"), str):
                fields["model"] = self._known(fields["model"])
            return read(fields, incoming)

        return face

    def _or_load(self, answer: Callable[[web.Request], Any], asks: str) -> Callable[[web.Request], Any]:
        """Returns a handler that answers at once where nothing is asked: clients have a model loaded so. Here hosts do
        that when they are asked for the first time."""

        async def handler(http: web.Request) -> web.StreamResponse:
            body = http[BODY].content
            fields: dict[str, Any] = json_object(body) if len(body) <= _MAX_LOAD_BYTES else {asks: body}
            if fields.get(asks) or fields.get("system") or not isinstance(fields.get("model"), str):
                response: web.StreamResponse = await answer(http)
                return response
            name = self._checked(fields["model"])
            said = {"message": {"role": "assistant", "content": ""}} if asks == "messages" else {"response": ""}
            reason = "unload" if fields.get("keep_alive") in (0, "0", "0s") else "load"
            created = moment(time.time())
            return _json({"model": name, "created_at": created, **said, "done": True, "done_reason": reason})

        return handler

    def _known(self, name: str) -> str:
        """Returns a model's name without the tag that clients write behind it, where none has that name."""
        if not name.endswith(_TAG) or self._table.has_model(name) or name in self._answering.settings.aliases:
            return name
        return name.removesuffix(_TAG)

    def _checked(self, name: str) -> str:
        """Returns a model's name. Raises `ApiError` where there is no such model now."""
        known, aliases = self._known(name), self._answering.settings.aliases
        check_model(self._table, aliases.get(known, known), aliases)
        return known

    def _listed(self) -> Mapping[str, Sequence[ExpertReport]]:
        """Returns all models that can be asked for, with the reports of who serves them."""
        reports, aliases = self._table.reports_by_model(), self._answering.settings.aliases
        everybody = tuple(report for model in reports.values() for report in model)
        meant = {ANY_MODEL[0]: everybody, **reports}
        return meant | {name: meant.get(model, ()) for name, model in aliases.items()}

    async def _tags(self, _: web.Request) -> web.Response:
        modified = moment(int(self._started_unix_s))
        return _json(
            {
                "models": [
                    {**_described(name, reports), "modified_at": modified} for name, reports in self._listed().items()
                ]
            }
        )

    async def _running(self, _: web.Request) -> web.Response:
        ready = {
            name: [report for report in reports if report.state == ExpertState.READY]
            for name, reports in self._table.reports_by_model().items()
        }
        return _json(
            {
                "models": [
                    {**_described(name, reports), "context_length": max(report.context_tokens for report in reports)}
                    for name, reports in ready.items()
                    if reports
                ]
            }
        )

    async def _asked_about(self, http: web.Request) -> tuple[str, OllamaModelRequest]:
        request, _ = read_struct(await http[BODY].parsed(json_object), OllamaModelRequest, self._answering.reading())
        if not request.meant:
            raise invalid("'model' is required: a non-empty string.", param="model")
        return self._checked(request.meant), request

    async def _show(self, http: web.Request) -> web.Response:
        name, _ = await self._asked_about(http)
        aliases = self._answering.settings.aliases
        listed = self._listed()
        reports = listed.get(aliases.get(name, name)) or listed.get(name.partition("/")[2], ())
        return _json(_shown(name, reports))

    async def _pull(self, http: web.Request) -> web.Response:
        """Answers that a model is there, where it is; which models hosts have is said by who runs them."""
        await self._asked_about(http)
        return _json({"status": "success"})

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": SPOKEN_VERSION, "moe2": __version__})


def _described(name: str, reports: Sequence[ExpertReport]) -> dict[str, Any]:
    """Returns a model as Ollama lists it. What nobody has said, or hosts disagree about, is null."""
    facts = model_object(name, reports, created_unix_s=0)["meta"]
    digests = {report.file_sha256 for report in reports}
    return {
        "name": name,
        "model": name,
        "size": facts["size"],
        "digest": digests.pop() if len(digests) == 1 else None,
        "details": _details(reports, facts["n_params"]),
    }


def _details(reports: Sequence[ExpertReport], parameters: int | None) -> dict[str, Any]:
    families = list(dict.fromkeys(report.architecture for report in reports if report.architecture))
    quantizations = {report.quantization for report in reports}
    return {
        "parent_model": "",
        "format": "gguf",
        "family": families[0] if len(families) == 1 else "",
        "families": families,
        "parameter_size": "" if parameters is None else _size(parameters),
        "quantization_level": (quantizations.pop() if len(quantizations) == 1 else None) or "",
    }


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1_000_000_000 else f"{parameters / 1e6:.2f}M"


def _shown(name: str, reports: Sequence[ExpertReport]) -> dict[str, Any]:
    """Returns what Ollama tells of one model."""
    facts = model_object(name, reports, created_unix_s=0)
    abilities, sampling = facts["capabilities"], facts["sampling"]
    architecture = next((report.architecture for report in reports if report.architecture), None) or "moe2"
    info = {
        "general.architecture": architecture,
        "general.basename": name,
        "general.parameter_count": facts["meta"]["n_params"],
        f"{architecture}.context_length": facts["context_length"],
        f"{architecture}.embedding_length": max((report.vector_size or 0 for report in reports), default=0) or None,
    }
    drawn = {} if sampling is None else {each: getattr(sampling, each) for each in MODEL_SAMPLING}
    named = {
        "completion": abilities["completion"],
        "tools": abilities["tools"],
        "insert": abilities["infill"],
        "thinking": abilities["reasoning"],
        "embedding": abilities["embeddings"],
    }
    return {
        "modelfile": "",
        "template": "",
        "license": next((report.licence for report in reports if report.licence), None) or "",
        "parameters": "\n".join(f"{each} {value}" for each, value in drawn.items() if value is not None),
        "details": _details(reports, facts["meta"]["n_params"]),
        "model_info": {key: value for key, value in info.items() if value is not None},
        "capabilities": [ability for ability, has in named.items() if has],
    }


def _json(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
