"""The coordinator's composition root: builds all parts, opens the listeners, and ends them in order."""

from __future__ import annotations

import asyncio
import math
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from time import monotonic, time

import structlog
from aiohttp import web

from moe2.common import __version__
from moe2.common.clock import clock_warnings
from moe2.common.daemon import Daemon
from moe2.common.errors import Moe2Error
from moe2.common.hosts import in_url
from moe2.common.link.messages import CommandAnswer
from moe2.common.listening import Listening, OpenConnections, listen
from moe2.common.localsocket import serving
from moe2.common.logs import set_log_level
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.choosing.lengths import Lengths
from moe2.coordinator.choosing.lengths_file import LengthsFile
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.chores import Chores
from moe2.coordinator.database.pair import Pair
from moe2.coordinator.fleet.doorkeeper import Doorkeeper
from moe2.coordinator.fleet.hub import Hub
from moe2.coordinator.fleet.register_file import RegisterFile
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.gate.checkpoint import checkpoint_sha256, load_checkpoint
from moe2.coordinator.gate.feedback import Feedback, FeedbackBook
from moe2.coordinator.gate.feedback_file import FEEDBACK_FILE, FeedbackFile
from moe2.coordinator.http.access.auth import Guard
from moe2.coordinator.http.access.browsers import Browsers
from moe2.coordinator.http.access.upload import BodyReader
from moe2.coordinator.http.boundary import JSON_ERRORS, Boundary
from moe2.coordinator.http.openapi.document import document
from moe2.coordinator.http.paths import meant_path
from moe2.coordinator.http.routes.answering import Answering
from moe2.coordinator.http.routes.books import FeedbackRoutes, LedgerRoute
from moe2.coordinator.http.routes.events import EventsRoute
from moe2.coordinator.http.routes.generation import GenerationRoutes
from moe2.coordinator.http.routes.models import ModelsRoutes
from moe2.coordinator.http.routes.ollama import OllamaRoutes
from moe2.coordinator.http.routes.orders import OrdersRoute, WishRoute
from moe2.coordinator.http.routes.page import PageRoute
from moe2.coordinator.http.routes.plan import PlanRoutes
from moe2.coordinator.http.routes.responses import ResponsesRoutes
from moe2.coordinator.http.routes.status import CalibrationRoute, FleetRoutes, MetricsRoute, OpenApiRoute
from moe2.coordinator.keys.store import KeyFile, KeyRing
from moe2.coordinator.ledger.accounts import Accounts, day_of
from moe2.coordinator.ledger.standing import StandingBook
from moe2.coordinator.ledger.store import Ledger
from moe2.coordinator.observing import health
from moe2.coordinator.observing.accuracy import CalibrationWindow
from moe2.coordinator.observing.fleet_metrics import LedgerCollector
from moe2.coordinator.observing.history import RecentPast
from moe2.coordinator.observing.metrics import CoordinatorMetrics
from moe2.coordinator.observing.traffic import AskedEverywhere, asked_of
from moe2.coordinator.provisioning.keeper import Keeper
from moe2.coordinator.provisioning.price_book import FLEET, PriceBook
from moe2.coordinator.provisioning.state_files import PriceFile
from moe2.coordinator.runtime import ListenerTls
from moe2.coordinator.serving.bookkeeper import Bookkeeper
from moe2.coordinator.serving.effects import Completed
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import Receipt
from moe2.coordinator.serving.service import Service
from moe2.coordinator.serving.waiting_room import MAX_AGENT_QUEUE_S
from moe2.coordinator.settings import CoordinatorSettings
from moe2.coordinator.supply.desk import FileListener, SupplyDesk

log = structlog.get_logger()

RETURN_S = 60.0
"""The time after the coordinator's start in which agents that it knows are expected back."""


class CoordinatorDaemon(Daemon[CoordinatorSettings]):
    """The coordinator's daemon. `run()` serves until SIGTERM or SIGINT, then drains; SIGHUP reads the settings again.

    load: reads the configuration; None if there is none to read again. `api_url` and `agents_url` are known once
    `listening` is set, also where the configured port is 0.
    """

    def __init__(
        self,
        settings: CoordinatorSettings,
        *,
        environment: Mapping[str, str] = os.environ,
        load: Callable[[], CoordinatorSettings] | None = None,
    ) -> None:
        super().__init__(settings, environment=environment, load=load)
        self._id = f"coordinator-{uuid.uuid4().hex}"
        self._started_s = monotonic()
        self.listening = asyncio.Event()
        self.api_url = ""
        self.agents_url = ""
        agents = settings.agents
        self._table = CapabilityTable(stale_s=agents.stale_s, evict_s=agents.evict_s)
        self._feedback_file = FeedbackFile(settings.coordinator.state_dir / FEEDBACK_FILE)
        scores = self._feedback_file.known()
        self._feedback = FeedbackBook(scores, keep_prompts=settings.selection.keep_prompts)
        lengths_file = LengthsFile(settings.coordinator.state_dir)
        self._selector = Selector(
            _scorer(settings, self._feedback),
            settings.selection.limits_by_category,
            clock=monotonic,
            longest_queue_s=MAX_AGENT_QUEUE_S if settings.dispatch.has_queue else math.inf,
            fleet_watts_cap_w=settings.selection.fleet_watts_cap_w,
            sharers=settings.database.coordinators if settings.database.url else 1,
            lengths=Lengths(lengths_file.read()),
        )
        self._past = RecentPast()
        self._calibration = CalibrationWindow()
        self._accounts = Accounts()
        self._price_file = PriceFile(settings.coordinator.state_dir)
        self._prices = PriceBook(settings.selection.averages, self._price_file.read())
        url = settings.database.url
        self._pair = None
        if url is not None:
            self._pair = Pair(
                settings.database,
                url,
                settings.ledger_path,
                scores=scores,
                on_scores=self._scored_elsewhere,
                on_wishes=lambda wishes: self._keeper.take_wishes(wishes),
                on_change=lambda: self._hub.disconnect_revoked(),
                accounts=self._accounts,
                prices=self._prices,
                on_lease=lambda: self._service.fleet_changed(),
            )
            self._pair.membership.gate_sha256 = self._selector.scorer.gate_sha256
        self._clock = self._pair.membership.unix_s if self._pair else time
        self._ledger = Ledger(
            settings.ledger_path,
            retention_days=settings.ledger.retention_days,
            is_journal=url is not None,
            clock=self._clock,
        )
        self._standing = StandingBook(time())
        collector = LedgerCollector(self._accounts, self._ledger, lambda: day_of(self._clock()))
        self._metrics = CoordinatorMetrics(self.status, stale_s=agents.stale_s, others=(collector,))
        self._traces = None
        if settings.traces.endpoint:
            try:
                # Imported here because few want it: it takes a while, and packages that are not always installed.
                from moe2.coordinator.observing.traces import open_traces
            except ImportError as error:
                raise Moe2Error(
                    f"Traces cannot be exported: {error}.", remedy="Install moe2[traces], or leave traces.endpoint out."
                ) from error
            self._traces = open_traces(settings.traces.endpoint)
        self._service = Service(
            self._table,
            self._selector,
            send=lambda agent_id, message: self._keeper.send(agent_id, message),
            max_active=settings.api.max_active_requests,
            bookkeeper=Bookkeeper(
                self._accounts,
                self._ledger,
                clock=self._clock,
                prices=self._prices,
                lender=self._pair.lender if self._pair else None,
            ),
            on_retired=self._request_retired,
            settings=settings.dispatch,
        )
        register = self._pair.register if self._pair else RegisterFile(settings.coordinator.state_dir)
        self._doorkeeper = Doorkeeper(register, agents.token_file, clock=self._clock)
        self._tls = ListenerTls(settings)
        self._api_connections = OpenConnections(settings.api.max_connections_per_address)
        self._agents_connections = OpenConnections(agents.max_connections_per_address)
        self._files_connections = OpenConnections(agents.max_connections_per_address)
        asked = AskedEverywhere(settings.ledger_path, self._pair.books.lengths if self._pair else None)
        self._keeper = Keeper(
            settings.provisioning,
            table=self._table,
            scorer=self._selector.scorer.apart(),
            send=lambda agent_id, message: self._hub.send(agent_id, message),
            on_message=self._service.agent_said,
            earlier=asked.earlier,
            elsewhere=asked.news,
            price_per_j=lambda: next((row.price_per_j for row in self._prices.rows(time()) if row.scope == FLEET), 0.0),
            patience_s=settings.selection.patience_s,
            state_dir=settings.coordinator.state_dir,
            may_act=lambda: self._pair is None or self._pair.does_chores,
            on_wishes=self._pair.bulletin.wish if self._pair else lambda _: None,
        )
        self._hub = Hub(
            agents,
            doorkeeper=self._doorkeeper,
            coordinator_id=self._id,
            table=self._table,
            on_message=self._service.agent_said,
            on_lost=self._agent_lost,
            on_report=self._service.fleet_changed,
            on_answer=self._command_answered,
            on_ticket_wanted=lambda agent_id, wanted: self._supply.pushes.ticket_wanted(agent_id, wanted),
        )
        self._chores = Chores(
            table=self._table,
            service=self._service,
            hub=self._hub,
            load_certificates=self._tls.load_changed,
            past=self._past,
            standing=self._standing,
            ledger=self._ledger,
            prices=self._prices,
            price_file=self._price_file,
            lengths=self._selector.lengths,
            lengths_file=lengths_file,
        )
        self._supply = SupplyDesk(
            settings.push,
            rows=lambda: self._table.rows(asyncio.get_running_loop().time()),
            send=self._hub.send,
            aliases=lambda: self._answering.settings.aliases,
            tls=self._tls.agents is not None,
        )
        self._files = FileListener(self._supply.pushes, self._doorkeeper, settings.push)
        self._answering = Answering(self._service, self._table, settings.api)
        keys = self._pair.keys if self._pair else KeyFile(settings.coordinator.state_dir)
        self._keys = KeyRing(keys, clock=self._clock) if settings.api.keys == "required" else None
        self._browsers = Browsers(settings.api)
        self._fleet = FleetRoutes(
            self.status, self._why_not_ready, lambda: self._pair is None or self._pair.does_chores
        )

    async def run(self) -> None:
        """Serves until `stop()` is called. Raises `Moe2Error` if a listener or the ledger cannot be opened."""
        self._handle_signals()
        async with AsyncExitStack() as stack:
            # The socket first: a second coordinator ends there, and does not take this one's requests for interrupted.
            await stack.enter_async_context(serving(self._local_app(), self._settings.coordinator.socket))
            await stack.enter_async_context(self._ledger.running())
            self._accounts.restore(day_of(self._clock()), self._ledger.days)
            if self._pair:
                await stack.enter_async_context(self._pair.running())
            self._standing.restore(self._ledger.booked_counters)
            self._table.expect(self._doorkeeper.enrolled_ids(), asyncio.get_running_loop().time() + RETURN_S)
            agents, api = self._settings.agents, self._settings.api
            hub_listener = await listen(
                stack,
                self._hub.app(),
                Listening("agents.", agents.host, agents.port, agents.handshake_s, self._tls.agents),
                self._agents_connections,
                errors=JSON_ERRORS,
            )
            if self._pair and self._pair.has_others:
                await self._hub.until_back(self._stop)
            api_listener = await listen(
                stack,
                self._api_app(),
                Listening("api.", api.host, api.port, api.header_timeout_s, self._tls.api, api.send_timeout_s),
                self._api_connections,
                errors=JSON_ERRORS,
                meant_path=meant_path,
            )
            push = self._settings.push
            if push.port is not None:
                files_listener = await listen(
                    stack,
                    self._files.app(),
                    Listening("push.", push.host, push.port, agents.handshake_s, self._tls.agents),
                    self._files_connections,
                    errors=JSON_ERRORS,
                )
                self._supply.pushes.port = files_listener.port
            self.agents_url = f"{'wss' if agents.tls else 'ws'}://{in_url(agents.host)}:{hub_listener.port}"
            self.api_url = f"{'https' if api.tls else 'http'}://{in_url(api.host)}:{api_listener.port}"
            log.info("coordinator_started", version=__version__, api=self.api_url, agents=self.agents_url)
            async with asyncio.TaskGroup() as tasks:
                steady = [
                    tasks.create_task(work)
                    for work in (
                        self._chores.run(),
                        self._keeper.run(),
                        self._supply.run(),
                        self._notifier.feed_watchdog(),
                    )
                ]
                self.listening.set()
                self._notifier.notify("READY=1", f"STATUS=Serving {self.api_url}")
                await self._stop.wait()
                self._notifier.notify("STOPPING=1")
                log.info("drain_started", requests=self._service.n_active)
                if self._pair and self._pair.has_others:
                    # Who connects goes on to another coordinator.
                    await api_listener.take_no_more()
                await self._service.drain(self._settings.coordinator.drain_s)
                self._chores.book_standing()
                self._hub.close("the coordinator is shutting down")
                for task in steady:
                    task.cancel()
        await self._chores.store_learned(at_end=True)
        if self._traces:
            await asyncio.to_thread(self._traces.close)
        log.info("coordinator_stopped")

    def status(self) -> CoordinatorStatus:
        """The present state of the coordinator, its agents and its warnings."""
        now_s = asyncio.get_running_loop().time()
        rows, choosable = self._table.rows(now_s), self._table.choosable(now_s)
        totals, dispatch, averages = self._service.totals, self._service.status(), self._prices.rows(time())
        return CoordinatorStatus(
            coordinator_id=self._id,
            version=__version__,
            pid=os.getpid(),
            uptime_s=monotonic() - self._started_s,
            draining=self._service.stopping,
            epoch=self._table.epoch,
            api_url=self.api_url,
            agents_url=self.agents_url,
            agents=rows,
            requests_active=self._service.n_active,
            requests_finished=totals.finished,
            requests_failed=totals.failed,
            requests_cancelled=totals.cancelled,
            dispatch=dispatch,
            energy=self._standing.balance(totals.finished, totals.unmeasured),
            averages=averages,
            provisioning=self._keeper.status(),
            model_orders=self._supply.orders.rows(),
            pushes=self._supply.pushes.rows(),
            pulls=self._supply.pulls.rows(),
            pair=self._pair.status() if self._pair else None,
            gate_sha256=self._selector.scorer.gate_sha256,
            warnings=(
                *health.dispatch_warnings(dispatch, rows, max_queued=self._settings.dispatch.max_queued),
                *health.fleet_warnings(
                    rows,
                    n_choosable=len(choosable) + len(self._table.wakeable()),
                    stale_s=self._settings.agents.stale_s,
                ),
                *health.cap_warnings(rows, self._settings.selection.fleet_watts_cap_w),
                *health.average_warnings(averages),
                *self._price_file.warnings(),
                *self._keeper.warnings(),
                *self._selector.scorer.warnings(choosable),
                *self._reload.warnings(),
                *self._doorkeeper.warnings(),
                *self._hub.warnings(),
                *clock_warnings(time(), effects=health.WRONG_CLOCK_EFFECTS),
                *self._tls.warnings(time()),
                *self._ledger.warnings(),
                *(self._pair.warnings() if self._pair else ()),
                *(self._keys.warnings() if self._keys else ()),
            ),
        )

    def _apply(self, former: CoordinatorSettings, settings: CoordinatorSettings) -> None:
        """Applies other settings. The steps that can fail come first, so that a failure changes nothing."""
        agents, api, selection = settings.agents, settings.api, settings.selection
        # Read anew even if its path is the same: a gate may have been trained again.
        scorer = _scorer(settings, self._feedback)
        self._doorkeeper.read_token(agents.token_file)
        try:
            self._tls.load(settings)
        except Moe2Error:
            self._doorkeeper.read_token(former.agents.token_file)
            raise
        self._selector.reconfigure(scorer, selection.limits_by_category, selection.fleet_watts_cap_w)
        self._prices.reconfigure(selection.averages)
        if self._pair:
            self._pair.membership.gate_sha256 = scorer.gate_sha256
        self._keeper.use(settings.provisioning, settings.selection.patience_s, scorer.apart())
        self._feedback.keep_prompts = selection.keep_prompts
        self._service.max_active = api.max_active_requests
        self._api_connections.most = api.max_connections_per_address
        self._agents_connections.most = agents.max_connections_per_address
        self._files_connections.most = agents.max_connections_per_address
        self._answering.use(api)
        self._browsers.use(api)
        self._table.set_ages(stale_s=agents.stale_s, evict_s=agents.evict_s)
        self._metrics.fleet.stale_s = agents.stale_s
        self._hub.settings = agents
        set_log_level(settings.log.level)

    def _api_app(self) -> web.Application:
        api = self._settings.api
        bodies = BodyReader(max_bytes=api.max_body_bytes, timeout_s=api.body_timeout_s)
        guard = Guard(self._keys, rates=self._pair.rates if self._pair else None)
        app = web.Application()
        GenerationRoutes(self._answering, self._table).add_to(app)
        ModelsRoutes(self._table, lambda: self._answering.settings.aliases).add_to(app)
        ResponsesRoutes(self._answering).add_to(app)
        OllamaRoutes(self._answering, self._table).add_to(app)
        PlanRoutes(self._service, self._answering.reading).add_to(app)
        FeedbackRoutes(
            self._feedback,
            self._feedback_file,
            on_score=self._scored,
            elsewhere=self._pair.answers if self._pair else None,
        ).add_to(app)
        self._fleet.add_to(app)
        LedgerRoute(
            self._ledger.path,
            self._accounts,
            clock=self._clock,
            shared=self._pair.books if self._pair else None,
            limits_of=self._pair.keys.limits_of if self._pair else None,
        ).add_to(app)
        MetricsRoute(self._metrics).add_to(app)
        EventsRoute(self._past, status=self.status, power=self._table.fleet_power, lives=self._service.lives).add_to(
            app
        )
        OrdersRoute(self._supply).add_to(app)
        PageRoute().add_to(app)
        OpenApiRoute(document).add_to(app)
        Boundary(bodies, browsers=self._browsers, guard=guard).add_to(app)
        return app

    def _local_app(self) -> web.Application:
        api = self._settings.api
        bodies = BodyReader(max_bytes=api.max_body_bytes, timeout_s=api.body_timeout_s)
        app = web.Application()
        self._fleet.add_to_local(app)
        PlanRoutes(self._service, self._answering.reading).add_to(app)
        WishRoute(self._keeper).add_to(app)
        OrdersRoute(self._supply, is_local=True).add_to(app)
        CalibrationRoute(self._calibration).add_to(app)
        Boundary(bodies).add_to(app)
        return app

    def _agent_lost(self, agent_id: str) -> None:
        self._supply.agent_lost(agent_id)
        self._service.agent_lost(agent_id)
        self._keeper.agent_lost(agent_id)

    def _command_answered(self, agent_id: str, answer: CommandAnswer) -> None:
        if not self._supply.answered(agent_id, answer):
            self._keeper.answered(agent_id, answer)

    def _scored(self, feedback: Feedback) -> None:
        self._selector.scorer.tallies_changed()
        if self._pair:
            self._pair.bulletin.score(feedback)

    def _scored_elsewhere(self, scores: list[Feedback]) -> None:
        self._feedback_file.given_elsewhere(scores, self._feedback)
        self._selector.scorer.tallies_changed()

    def _why_not_ready(self) -> str | None:
        if self._service.stopping:
            return "shutting down"
        # Where a request wakes a host, a balancer that sends none would leave it asleep for ever.
        if not self._table.choosable(asyncio.get_running_loop().time()) and not self._table.wakeable():
            return "no expert is ready"
        return None

    def _request_retired(self, life: Lifecycle, receipt: Receipt) -> None:
        now_unix_s = time()
        self._metrics.request_ended(receipt, life.outcome)
        self._past.request_ended(life, receipt, now_unix_s)
        self._calibration.request_retired(life)
        if self._traces:
            self._traces.request_ended(life, receipt, unix_offset_s=time() - asyncio.get_running_loop().time())
        if not isinstance(life.outcome, Completed):
            return
        self._keeper.request_ended(asked_of(life, receipt, now_unix_s), first_token_s=receipt.seconds.ttft)
        if answered := life.leading:
            # So that the answer can be scored later.
            expert, request = answered.expert, life.request
            self._feedback.answered(
                request.request_id,
                expert=expert.key,
                model=expert.model,
                file_sha256=expert.report.file_sha256,
                prompt=request.text,
                key_id=request.principal.key_id,
            )


def _scorer(settings: CoordinatorSettings, feedback: FeedbackBook) -> Scorer:
    """Makes the scorer of experts: the trained gate, or priors where there is none.

    Raises `CheckpointError` for a checkpoint that cannot be used.
    """
    checkpoint = settings.gate_path
    if settings.selection.gate is None and not checkpoint.exists():
        return Scorer(None, tallies=feedback.tallies)
    # Before the file is read: a digest of what replaces it meanwhile would be of a gate that nobody uses yet.
    digest = checkpoint_sha256(checkpoint)
    gate, manifest = load_checkpoint(checkpoint)
    log.info("gate_loaded", path=str(checkpoint), experts=manifest.experts)
    return Scorer(gate, manifest.kinds, feedback.tallies, digest)
