"""The route `POST /v1/moe2/plan`, which tells what would be decided for a request and runs nothing.

It also tells what other budgets would buy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from moe2.common.link.prompts import ChatPrompt
from moe2.coordinator.choosing.explain import Decision, FrontierRow, decision_of, frontier_rows, offers_of, refusal_of
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.http.access.auth import PRINCIPAL
from moe2.coordinator.http.access.upload import BODY
from moe2.coordinator.http.body.parse import Call, Reading, parse_chat, parse_completion
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.keys.keys import ANYBODY, Principal
from moe2.coordinator.serving.request import gate_text, has_gap, uses_tools
from moe2.coordinator.serving.service import Service


class PlanAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The decision that the coordinator would take for a request.

    chosen: key of the expert that would answer, of a panel the one with the most weight; None with a refusal. refusal:
    why no expert would answer, such as the key's daily limit. offers: budgets that would be met, where budgets are the
    reason. prompt_tokens, answer_tokens: as estimated for the predictions; longest_answer_tokens: the length that 95 of
    100 answers keep below where the request sets no `max_tokens`, and `answer_tokens` is what half of them keep below.
    """

    chosen: str | None
    prompt_tokens: int
    answer_tokens: int
    longest_answer_tokens: int | None = None
    decision: Decision | None
    refusal: str | None
    offers: dict[str, Any] | None
    frontier: tuple[FrontierRow, ...]


class PlanRoutes:
    """The route that plans a request, given the body of a chat or a text completion.

    reading: how bodies are read, by the settings as they are now.
    """

    def __init__(self, service: Service, reading: Callable[[], Reading]) -> None:
        self._service = service
        self._reading = reading

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_post(PLAN_PATH, self._plan)

    async def _plan(self, http: web.Request) -> web.Response:
        reading = self._reading()
        call = await http[BODY].parsed(lambda body: _parsed(body, http.headers, reading))
        answer = self.answer(call, http.get(PRINCIPAL, ANYBODY))
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def answer(self, call: Call, principal: Principal = ANYBODY) -> PlanAnswer:
        """Returns the plan for a parsed request of `principal`."""
        demand = self._service.planned(Demand(call.prompt_tokens(), call.generation.max_tokens), call.model)
        request = SelectionRequest(
            model=call.model,
            demand=demand,
            text=gate_text(call.prompt),
            wish=call.wish,
            budgets=principal.budgets,
            needs_chat_template=isinstance(call.prompt, ChatPrompt),
            needs_tools=uses_tools(call.prompt),
            needs_infill=has_gap(call.prompt),
            modes=call.modes,
            choice_tokens=call.ballot.tokens if call.ballot else None,
        )
        decided = self._service.choose(request, principal)
        frontier = frontier_rows(self._service.frontier(decided))
        answer_tokens, longest_tokens = _planned_tokens(decided, demand)
        return PlanAnswer(
            chosen=None if isinstance(decided, NoExpert) else decided.first.expert.key,
            prompt_tokens=demand.prompt_tokens,
            answer_tokens=answer_tokens,
            longest_answer_tokens=longest_tokens,
            decision=refusal_of(decided) if isinstance(decided, NoExpert) else decision_of(decided),
            refusal=decided.message if isinstance(decided, NoExpert) else None,
            offers=offers_of(decided) if isinstance(decided, NoExpert) else None,
            frontier=frontier,
        )


def _parsed(body: bytes, headers: Mapping[str, str], reading: Reading) -> Call:
    parse = parse_completion if b'"prompt"' in body and b'"messages"' not in body else parse_chat
    return parse(body, headers, reading)


def _planned_tokens(decided: Selection | NoExpert, demand: Demand) -> tuple[int, int | None]:
    """The answer's length that the predictions rest on, and that of a long answer where the client sets no limit.

    Where nobody would answer, they are the longest of all experts that were considered.
    """
    considered = decided.considered if isinstance(decided, NoExpert) else (decided.first,)
    learned = [one.prediction for one in considered if one.prediction.longest_tokens is not None]
    if demand.max_tokens is not None or not learned:
        return demand.answer_tokens, None
    return max(one.shape.decoded_tokens for one in learned), max(one.longest_tokens or 0 for one in learned)
