"""The models that clients can ask for, as the list of models tells them: names, context, abilities."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.common.link.reports import ExpertReport
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.errors import explained, quoted, refused
from moe2.coordinator.http.paths import MODELS_PATH
from moe2.coordinator.serving.effects import Failed

T = TypeVar("T")


class ModelsRoutes:
    """The routes that list and describe models. aliases: other names of models, by the settings as they are now."""

    def __init__(self, table: CapabilityTable, aliases: Callable[[], Mapping[str, str]]) -> None:
        self._table = table
        self._aliases = aliases
        self._started_unix_s = int(time.time())

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_get(MODELS_PATH, self._models)
        app.router.add_get(MODELS_PATH + "/{model:.+}", self._model)

    async def _models(self, _: web.Request) -> web.Response:
        reports, aliases = self._table.reports_by_model(), self._aliases()
        names = dict.fromkeys((ANY_MODEL[0], *reports, *aliases))
        return _json({"object": "list", "data": [self._described(name, reports, aliases) for name in names]})

    async def _model(self, request: web.Request) -> web.Response:
        name, aliases = request.match_info["model"], self._aliases()
        check_model(self._table, aliases.get(name, name), aliases)
        return _json(self._described(name, self._table.reports_by_model(), aliases))

    def _described(
        self, name: str, reports: Mapping[str, Sequence[ExpertReport]], aliases: Mapping[str, str]
    ) -> dict[str, Any]:
        meant = aliases.get(name, name)
        own = reports_of(reports, meant)
        return {**model_object(name, own, created_unix_s=self._started_unix_s), "root": meant}


def reports_of(reports: Mapping[str, Sequence[ExpertReport]], name: str) -> Sequence[ExpertReport]:
    """Returns the reports of the experts that a name stands for. reports: of all experts, by the model's name."""
    if name in ANY_MODEL:
        return [report for model in reports.values() for report in model]
    return _meant(reports, name) or ()


def _meant(by_model: Mapping[str, T], name: str) -> T | None:
    """Returns what is known of the model that a name means; None of an unknown one."""
    # An expert's key names one host's model; the same model elsewhere is like it.
    return by_model.get(name) or by_model.get(name.partition("/")[2])


def model_object(name: str, reports: Sequence[ExpertReport], *, created_unix_s: int) -> dict[str, Any]:
    """Returns OpenAI's object of a model, with the fields that other servers' clients look for.

    reports: of the experts that can serve it. Abilities are what one of them can do, as a request goes to one that can
    do what it asks for; limits are those of the largest context. What nobody has said is null.
    """
    context_tokens = max((report.context_tokens for report in reports), default=None)
    writers = [report for report in reports if report.vector_size is None]
    writes = bool(writers) or not reports
    return {
        "id": name,
        "object": "model",
        "created": created_unix_s,
        "owned_by": "moe2",
        # OpenRouter's and LM Studio's name, vLLM's, and the two that LiteLLM reads.
        "context_length": context_tokens,
        "max_model_len": context_tokens,
        "max_input_tokens": context_tokens,
        "max_output_tokens": context_tokens,
        "capabilities": {
            "chat": writes and _any(report.has_chat_template for report in writers),
            "completion": writes,
            "tools": writes and _any(report.supports_tools for report in writers),
            "infill": writes and _any(report.supports_infill for report in writers),
            "reasoning": writes and _any(report.supports_thinking for report in writers),
            "vision": False,
            "embeddings": len(writers) < len(reports),
        },
        # llama-server's.
        "meta": {
            "n_ctx": context_tokens,
            "n_params": _same(report.parameters for report in reports),
            "size": _same(report.file_bytes for report in reports),
        },
        "sampling": _same(report.sampling for report in reports),
    }


def check_model(table: CapabilityTable, model: str, aliases: Mapping[str, str]) -> None:
    """Raises `ApiError` for a name that no request can be for now.

    It is a 503 for a model whose host is away, and may come back, or may be on its way after the coordinator's start;
    a 404 for a name that is neither a model, nor an expert, nor one that lets moe2 choose.
    """
    if model in ANY_MODEL:
        return
    known = table.largest_contexts()
    if model in known or table.knows_expert(model):
        return
    if table.remembers(model):
        text = f"The host of {quoted(model)} is away; it may come back."
        raise refused(ErrorCode.MODEL_AWAY, text, param="model")
    if table.is_expecting(asyncio.get_running_loop().time()):
        text = f"No host with {quoted(model)} is back yet: the coordinator has just started."
        raise refused(ErrorCode.MODEL_AWAY, text, param="model")
    names = ", ".join((*ANY_MODEL, *known, *aliases))
    raise refused(
        ErrorCode.MODEL_NOT_FOUND, f"The model {quoted(model)} does not exist. Known: {names}.", param="model"
    )


def check_fits(table: CapabilityTable, model: str, least_tokens: int) -> None:
    """Raises `ApiError` (400) for a prompt that certainly fits no context of the model: no agent need read it.

    least_tokens: of the prompt, whatever the vocabulary.
    """
    contexts = table.largest_contexts()
    largest = max(contexts.values(), default=None) if model in ANY_MODEL else _meant(contexts, model)
    if largest is not None and least_tokens > largest:
        text = f"It has at least {least_tokens} tokens."
        raise refused(ErrorCode.CONTEXT_EXCEEDED, explained(Failed(ErrorCode.CONTEXT_EXCEEDED, text), largest).message)


def _any(values: Any) -> bool | None:
    """Whether one of the values is true; None where none is, and one is not known."""
    known = list(values)
    return True if any(known) else None if not known or None in known else False


def _same(values: Any) -> Any:
    """The value that all have in common; None where they differ, or there is none."""
    known = list(values)
    return known[0] if known and all(value == known[0] for value in known) else None


def _json(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
