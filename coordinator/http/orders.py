"""The route on which an operator says what is served where: of the local socket, and of the API for keys that may."""

from __future__ import annotations

import msgspec
from aiohttp import web

from moe2.common.errors import Moe2Error
from moe2.coordinator.http.auth import BODY
from moe2.coordinator.http.errors import invalid
from moe2.coordinator.http.paths import ORDERS_PATH
from moe2.coordinator.supply.orders import Orders, Wanted


class OrdersRoute:
    """Gives orders about models, and tells what became of those of late."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_post(ORDERS_PATH, self._want)
        app.router.add_get(ORDERS_PATH, self._tell)

    async def _want(self, http: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(http[BODY], type=Wanted)
        except msgspec.MsgspecError as error:
            raise invalid(f"This is no order about a model: {error}.") from error
        try:
            given = self._orders.want(wanted)
        except Moe2Error as error:
            raise invalid(f"{error.message} {error.remedy or ''}".strip()) from error
        return web.Response(body=msgspec.json.encode({"orders": given}), content_type="application/json")

    async def _tell(self, _: web.Request) -> web.Response:
        body = msgspec.json.encode({"orders": self._orders.rows()})
        return web.Response(body=body, content_type="application/json")
