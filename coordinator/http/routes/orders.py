"""The routes on which an operator gives orders: what is served where, which files are sent, which hosts are awake."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

from moe2.common.errors import Moe2Error
from moe2.coordinator.http.access.upload import BODY
from moe2.coordinator.http.body.decode import json_object
from moe2.coordinator.http.errors import ApiError, invalid
from moe2.coordinator.http.paths import ORDERS_PATH, PULLS_PATH, PUSHES_PATH, WISH_PATH
from moe2.coordinator.provisioning.keeper import Keeper
from moe2.coordinator.supply.desk import SupplyDesk
from moe2.coordinator.supply.orders import Wanted
from moe2.coordinator.supply.pulls import PullWanted
from moe2.coordinator.supply.pushes import PushWanted

WordT = TypeVar("WordT")


class OrdersRoute:
    """Gives orders about models, sends files and has some pulled, and tells what became of those of late.

    is_local: the routes are of the local socket, whose users may send any file that the coordinator can read.
    """

    def __init__(self, desk: SupplyDesk, *, is_local: bool = False) -> None:
        self._orders = desk.orders
        self._pushes = desk.pushes
        self._pulls = desk.pulls
        self._is_local = is_local

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_post(ORDERS_PATH, self._want)
        app.router.add_get(ORDERS_PATH, self._tell)
        app.router.add_post(PUSHES_PATH, self._push)
        app.router.add_get(PUSHES_PATH, self._tell_pushes)
        app.router.add_post(PULLS_PATH, self._pull)
        app.router.add_get(PULLS_PATH, self._tell_pulls)

    async def _want(self, http: web.Request) -> web.Response:
        wanted = await _read(http, Wanted)
        try:
            given = self._orders.want(wanted)
        except Moe2Error as error:
            raise _refused(error) from error
        return _answer({"orders": given})

    async def _tell(self, _: web.Request) -> web.Response:
        return _answer({"orders": self._orders.rows()})

    async def _push(self, http: web.Request) -> web.Response:
        wanted = await _read(http, PushWanted)
        try:
            begun = await self._pushes.want(wanted, is_local=self._is_local)
        except Moe2Error as error:
            raise _refused(error) from error
        return _answer({"pushes": begun})

    async def _tell_pushes(self, _: web.Request) -> web.Response:
        return _answer({"pushes": self._pushes.rows()})

    async def _pull(self, http: web.Request) -> web.Response:
        wanted = await _read(http, PullWanted)
        try:
            begun = self._pulls.want(wanted)
        except Moe2Error as error:
            raise _refused(error) from error
        return _answer({"pulls": begun})

    async def _tell_pulls(self, _: web.Request) -> web.Response:
        return _answer({"pulls": self._pulls.rows()})


async def _read(http: web.Request, kind: type[WordT]) -> WordT:
    try:
        return await http[BODY].parsed(msgspec.json.Decoder(kind).decode)
    except msgspec.MsgspecError as error:
        raise invalid(f"This is no order about a model: {error}.") from error


def _refused(error: Moe2Error) -> ApiError:
    return invalid(f"{error.message} {error.remedy or ''}".strip())


def _answer(content: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


class WishRoute:
    """The local route on which an operator sends hosts to sleep, wakes, pins and unpins them."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_post(WISH_PATH, self._wish)

    async def _wish(self, http: web.Request) -> web.Response:
        body = await http[BODY].parsed(json_object)
        verb, host = body.get("verb"), body.get("host")
        if not isinstance(verb, str) or not isinstance(host, str):
            raise invalid("'verb' and 'host' must be texts.", param="verb" if not isinstance(verb, str) else "host")
        try:
            done = self._keeper.wish(verb, host)
        except Moe2Error as error:
            raise invalid(f"{error.message} {error.remedy or ''}".strip(), param="host") from error
        return web.json_response({"done": done})
