"""The agent's composition root: builds the collaborators, performs the core's effects, ends them in order."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from random import Random

import msgspec
import structlog

from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.energy.catalog import SensorSearch, SensorSettings
from moe2.agent.energy.monitor import HostMonitor
from moe2.agent.energy.ownership import DeviceLocks
from moe2.agent.engine import protocol
from moe2.agent.engine.process import EngineProcess, Exit
from moe2.agent.jobs import core
from moe2.agent.jobs.effects import (
    AddEngine,
    AnswerCommand,
    Effect,
    KeepServed,
    KillEngine,
    RemoveEngine,
    ReportChange,
    SendToCoordinator,
    SendToEngine,
    SendTokens,
    SettleEnergy,
    StartEngine,
    StopEngine,
    SuspendHost,
)
from moe2.agent.jobs.events import (
    CancelRequested,
    CommandReceived,
    DrainRequested,
    EngineExited,
    EngineGone,
    EngineSpoke,
    EngineStopped,
    Event,
    FileHashed,
    JobSubmitted,
    LinkLost,
    PowerModeChanged,
    ProfileRestored,
    TimePassed,
    TokenTaken,
)
from moe2.agent.jobs.selfmeasurement import rules_of
from moe2.agent.learning.store import StoredProfile, restored_profiles, store_costs
from moe2.agent.link.credential import AgentCredentials
from moe2.agent.link.dialing import Dialer
from moe2.agent.link.identity import load_identity
from moe2.agent.link.links import Links
from moe2.agent.link.reporting import Reporter
from moe2.agent.models.files import ChecksumStore, ModelFiles
from moe2.agent.models.spec import MEASURING_LOCK, spec_of
from moe2.agent.observing.health import WRONG_CLOCK_EFFECTS, agent_warnings, gravest_first, link_warnings
from moe2.agent.observing.host import detect_host
from moe2.agent.observing.joblog import log_job
from moe2.agent.observing.local_api import listening, local_app, metrics_app
from moe2.agent.observing.metrics import AgentMetrics
from moe2.agent.observing.state_disk import StateDisk
from moe2.agent.presence import Presence
from moe2.agent.settings import AgentSettings, ModelSection, sensors_wanted
from moe2.agent.settlement import Settlement
from moe2.agent.standby.logind import Logind
from moe2.agent.standby.sleeping import HostControl
from moe2.agent.supply.engines import EngineSet
from moe2.agent.supply.fetching import Fetcher
from moe2.agent.supply.orders import Supply
from moe2.agent.supply.served import ServedFile
from moe2.agent.supply.served import sections as served_sections
from moe2.common import __version__
from moe2.common.alarm import Alarm
from moe2.common.backoff import Backoff
from moe2.common.clock import clock_warnings
from moe2.common.daemon import Daemon
from moe2.common.link.messages import (
    CancelJob,
    EmbedJob,
    FollowJob,
    JobFailed,
    LoadModel,
    ScoreJob,
    Submit,
    Suspend,
    TakeToken,
    UnloadModel,
    WakeNeighbour,
    Welcome,
)
from moe2.common.link.reports import HostFacts
from moe2.common.link.session import JobMessage
from moe2.common.link.supply import SupplyOrder, Ticket, TicketWanted
from moe2.common.localsocket import serving
from moe2.common.logs import set_log_level
from moe2.common.status import AgentStatus

log = structlog.get_logger()

ENGINE_ARGV = (sys.executable, "-m", "moe2.agent.engine.child")


class AgentDaemon(Daemon[AgentSettings]):
    """One agent. `run()` serves until SIGTERM or SIGINT, then drains. SIGHUP reads the settings again.

    engine_argv: the command that starts an engine's child; tests put a fake expert here.
    sensors: where to look for sensors; from the settings if not given.
    load: reads the configuration; None if there is none to read again. control: suspends the host, logind by default.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        environment: Mapping[str, str] = os.environ,
        engine_argv: Sequence[str] = ENGINE_ARGV,
        sensors: SensorSettings | None = None,
        load: Callable[[], AgentSettings] | None = None,
        control: HostControl | None = None,
    ) -> None:
        super().__init__(settings, environment=environment, load=load)
        models = served_sections(settings, ServedFile(settings.agent.state_dir).read())
        self._core = core.AgentCore(
            models,
            stuck_s=settings.engine.stuck_s,
            paced=settings.sensors.paced,
            allow_unload=settings.agent.allow_unload,
            allow_suspend=settings.agent.allow_suspend,
            measuring=rules_of(settings.measuring),
        )
        self._random = Random()
        self._started_s = time.monotonic()
        self._idle = asyncio.Event()
        self._alarm = Alarm(lambda: self._dispatch(TimePassed()))
        self._identity = load_identity(settings.agent.state_dir)
        self._state_disk = StateDisk(settings.agent.state_dir)
        self._agent_id = self._identity.agent_id
        self._name = settings.agent.name or socket.gethostname()
        self._sensor_settings = sensors or sensors_wanted(settings.sensors)
        self._host = HostFacts(hostname=socket.gethostname(), system=platform.system(), architecture=platform.machine())
        # Sensors are probed when the loop runs: a hung one must not keep the agent from starting.
        self._monitor = HostMonitor(())
        self._presence = Presence(
            settings.agent,
            self._core.experts,
            self._monitor,
            control=control or Logind(),
            dispatch=self._dispatch,
            changed=lambda: self._reporter.changed(),
        )
        self._power_mode: str | None = None
        self._metrics = AgentMetrics(self.status, lambda: self._monitor.account.overhead())
        self._settlement = Settlement(self._core, self._monitor, self._metrics, self._dispatch)
        self._known_power_modes: set[str | None] = set()
        checksums = self._checksums = ChecksumStore(settings.agent.state_dir)
        self._supply = Supply(
            settings,
            checksums,
            fetcher=lambda library: Fetcher(
                library,
                checksums,
                max_bytes=settings.models_from.max_bytes,
                url=settings.coordinator.url,
                tls=lambda: self._dialer.tls(),
                headers=lambda: self._papers.headers(),
                ask=self._ask,
                changed=lambda: self._reporter.changed(),
            ),
            serving=self._served,
            swapping=lambda: self._core.swaps.names,
            dispatch=self._dispatch,
            answer=self._presence.answer,
            changed=lambda: self._reporter.changed(),
            report_now=lambda: self._reporter.send(),
        )
        self._engines = EngineSet(
            lambda name, section: self._engine(name, section, engine_argv),
            on_gone=lambda name: self._dispatch(EngineGone(name)),
        )
        for model in models:
            self._engines.add(model.name, model)
        self._files = ModelFiles(
            {model.name: model.path for model in models},
            checksums,
            on_known=lambda model, sha256: self._dispatch(FileHashed(model, sha256)),
        )
        link = settings.coordinator
        self._papers = AgentCredentials(
            identity=self._identity,
            agent_name=self._name,
            state_dir=settings.agent.state_dir,
            token_file=link.token_file,
        )
        copied = self._identity.copied_warning
        self._copy_warnings = (copied,) if copied and self._papers.is_copy_to_enrol else ()
        if self._copy_warnings:
            log.warning("identity_copied", agent_id=self._agent_id, copied_from=self._identity.copied_from)
        self._dialer = Dialer(
            link, self._papers, agent_id=self._agent_id, agent_name=self._name, hostname=self._host.hostname
        )
        self._link = Links(
            link.addresses,
            self._dialer.link,
            on_opened=self._link_opened,
            on_message=self._message_received,
            on_lost=lambda jobs, others: self._dispatch(LinkLost(jobs if others else None)),
        )
        self._reporter = Reporter(self._link, self.status, self._core.n_jobs)

    async def run(self) -> None:
        """Serve until `stop()`; running jobs then get `drain_s`, engines and link end after that."""
        self._handle_signals()
        await self._look_at_host()
        self._enter_power_mode()
        log.info("agent_started", agent_id=self._agent_id, agent_name=self._name, version=__version__)
        metrics = self._settings.metrics
        async with (
            serving(local_app(self.status, self._metrics), self._settings.agent.socket),
            listening(metrics_app(self._metrics), metrics.host, metrics.port),
            self._supply.sharing.listening(),
            asyncio.TaskGroup() as tasks,
        ):
            self._engines.start(tasks)
            link = tasks.create_task(self._link.run())
            steady = [
                tasks.create_task(work)
                for work in (
                    self._monitor.run(),
                    self._files.run(),
                    self._supply.run(),
                    self._presence.run(self._link),
                    self._settlement.run(self._watch_standing),
                    self._reporter.run(),
                    self._state_disk.run(),
                    self._notifier.feed_watchdog(),
                )
            ]
            self._notifier.notify("READY=1")
            await self._stop.wait()
            await self._drain(link)
            await self._supply.close()
            self._engines.stop()
            for task in steady:
                task.cancel()
        learned = {expert.section: expert.costs for expert in self._core.experts.values()}
        store_costs(
            self._settings.agent.state_dir, learned, self._host.hostname, self._power_mode, self._checksums.known
        )
        await self._presence.store()
        log.info("agent_stopped", jobs_finished=self._core.jobs_finished, jobs_failed=self._core.jobs_failed)

    def status(self) -> AgentStatus:
        experts = self._presence.with_costs(self._core.expert_reports(asyncio.get_running_loop().time()))
        sensors, standby = self._monitor.reports(), self._presence.report()
        link = self._link.best_status
        warnings = (
            *agent_warnings(link, experts, sensors, standby),
            *(warning for other in self._link.status if other.url != link.url for warning in link_warnings(other)),
            *self._monitor.warnings(),
            *self._copy_warnings,
            *clock_warnings(time.time(), effects=WRONG_CLOCK_EFFECTS),
            *self._state_disk.warnings(),
            *self._reload.warnings(),
            *self._supply.warnings(),
        )
        return AgentStatus(
            agent_id=self._agent_id,
            agent_name=self._name,
            version=__version__,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started_s,
            draining=self._core.draining,
            host=msgspec.structs.replace(self._host, power_mode=self._monitor.power_mode),
            sensors=sensors,
            experts=experts,
            link=link,
            links=self._link.status,
            jobs_finished=self._core.jobs_finished,
            jobs_failed=self._core.jobs_failed,
            warnings=gravest_first(warnings),
            standby=standby,
            model_files={name: str(section.path) for name, section in self._served().items()},
            models=self._supply.report(),
        )

    def engine_pids(self) -> dict[str, int | None]:
        """The process of each model's engine, None where it is being started again."""
        return self._engines.pids()

    def _served(self) -> dict[str, ModelSection]:
        """What is served now, by name."""
        return {name: expert.section for name, expert in self._core.experts.items()}

    def _apply(self, former: AgentSettings, settings: AgentSettings) -> None:
        """Go on with other settings. Those of the link hold for its next attempt."""
        link, before = settings.coordinator, former.coordinator
        self._papers.token_file = link.token_file
        self._dialer.section = link
        is_other = (link.reconnect_first_s, link.reconnect_most_s) != (
            before.reconnect_first_s,
            before.reconnect_most_s,
        )
        self._link.use(link, self._dialer.backoff if is_other else None)
        set_log_level(settings.log.level)

    def _engine(self, name: str, model: ModelSection, argv: Sequence[str]) -> EngineProcess:
        engine, simulated = self._settings.engine, self._sensor_settings.simulated
        return EngineProcess(
            name,
            # Asked before each load: the draft model may have been exchanged or removed since the last one.
            lambda: spec_of(
                model,
                simulated.pace if simulated else None,
                self._settings.agent.state_dir / MEASURING_LOCK,
                served=self._served(),
            ),
            argv,
            backoff=Backoff(first_s=engine.restart_first_s, most_s=engine.restart_most_s, random=self._random),
            load_timeout_s=engine.load_timeout_s,
            on_event=self._engine_spoke,
            on_exit=self._engine_exited,
            on_stopped=self._engine_stopped,
            before_load=lambda: self._supply.before_load(model.name, model.path),
            # One that is added later is loaded at once.
            wanted=model.load == "start" or name != model.name,
        )

    # --- Events in ----------------------------------------------------------------------------------------------------

    def _link_opened(self, welcome: Welcome) -> None:
        self._reporter.every_s = welcome.report_s
        self._reporter.send()
        self._presence.link_opened(self._link)
        self._supply.fetcher.link_opened()

    def _message_received(self, message: JobMessage) -> None:
        match message:
            case Submit() | ScoreJob() | FollowJob() | EmbedJob():
                self._dispatch(JobSubmitted(message))
            case TakeToken():
                self._dispatch(TokenTaken(message))
            case CancelJob(job_id=job_id):
                self._dispatch(CancelRequested(job_id))
            case LoadModel() | UnloadModel() | Suspend():
                self._dispatch(CommandReceived(message))
            case WakeNeighbour():
                self._presence.wake(message)
            case _ if isinstance(message, SupplyOrder):
                self._supply.order(message)
            case Ticket():
                self._supply.fetcher.ticket(message)
            case _:
                log.warning("message_ignored", op=type(message).__name__)

    def _engine_spoke(self, model: str, event: protocol.Event) -> None:
        self._settlement.engine_spoke(model, event)
        self._dispatch(EngineSpoke(model, event))
        if isinstance(event, protocol.Loaded):
            self._presence.models_changed()
            self._files.look(self._core.expert_of(model).section.name)

    def _engine_exited(self, model: str, ended: Exit) -> None:
        self._dispatch(EngineExited(model, ended.reason, ended.permanent))
        self._presence.models_changed()

    def _engine_stopped(self, model: str) -> None:
        self._dispatch(EngineStopped(model))
        self._presence.models_changed()

    def _dispatch(self, event: Event) -> None:
        for effect in self._core.handle(event, asyncio.get_running_loop().time()):
            self._perform(effect)
        self._presence.follow()
        if self._core.is_idle:
            self._idle.set()
        else:
            self._idle.clear()
        self._alarm.set(self._core.next_deadline_s)

    # --- Effects out --------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendTokens(jobs=jobs):
                self._link.send_tokens(jobs)
            case SendToEngine() | StartEngine() | StopEngine() | KillEngine() | AddEngine() | RemoveEngine():
                self._engines.perform(effect)
                if isinstance(effect, StopEngine):
                    self._presence.models_changed()
            case SendToCoordinator(message=message, request_id=request_id):
                if isinstance(message, JobFailed) and message.usage is None:
                    self._metrics.job_refused(message.code)
                self._link.send(message)
                log_job(message, request_id)
            case SettleEnergy(job_id=job_id):
                self._settlement.job_ended(job_id)
            case KeepServed(name=name, section=section):
                self._keep_served(name, section)
            case AnswerCommand(answer=answer):
                self._presence.answer(answer)
            case SuspendHost(command_id=command_id):
                self._presence.suspend(command_id)
            case ReportChange():
                self._reporter.changed()

    def _keep_served(self, name: str, section: ModelSection | None) -> None:
        self._supply.keep(name, section)
        self._presence.models_changed()
        if section is not None:
            self._files.follow(name, section.path)
            for stored in self._stored_profiles((section,)):
                self._dispatch(ProfileRestored(stored.model, stored.latency, stored.energy))
        # Before the order is answered: whoever waits for the answer finds the fleet as it says.
        self._reporter.send()

    async def _watch_standing(self) -> None:
        if self._monitor.power_mode != self._power_mode:
            self._enter_power_mode()
        await self._presence.settle()

    def _enter_power_mode(self) -> None:
        """Learn apart for the power mode that rules now; at its first entry, from what is stored of it."""
        mode = self._power_mode = self._monitor.power_mode
        self._dispatch(PowerModeChanged(mode))
        if mode in self._known_power_modes:
            return
        self._known_power_modes.add(mode)
        for stored in self._stored_profiles(tuple(self._served().values())):
            self._dispatch(ProfileRestored(stored.model, stored.latency, stored.energy))

    def _stored_profiles(self, models: Sequence[ModelSection]) -> tuple[StoredProfile, ...]:
        """What is stored of these models in the power mode that rules now."""
        return restored_profiles(self._settings.agent.state_dir, models, self._power_mode, self._checksums.known)

    async def _look_at_host(self) -> None:
        search = SensorSearch(self._sensor_settings)
        found = await in_daemon_thread(search.look)
        self._monitor = HostMonitor(
            found,
            root=self._sensor_settings.root,
            interval_s=self._settings.sensors.interval_s,
            search=search,
            locks=DeviceLocks(self._sensor_settings.root, self._name),
            engine_pids=self.engine_pids,
            by_wall=self._sensor_settings.by_wall,
        )
        self._settlement.monitor = self._monitor
        await self._look_at_facts()
        await self._presence.look(self._monitor)
        for result in found:
            log.info("sensor_probed", sensor=result.name, state=result.state, detail=result.detail)

    async def _look_at_facts(self) -> None:
        """Learn what this host is. A driver that is slow to answer is waited for beside the work."""
        facts = partial(detect_host, self._sensor_settings.root, simulated=self._sensor_settings.simulated)
        self._host = await in_daemon_thread(partial(facts, ask_driver=False))
        look = asyncio.create_task(in_daemon_thread(facts))
        look.add_done_callback(self._facts_known)
        await asyncio.wait({look}, timeout=self._sensor_settings.deadline_s)

    def _facts_known(self, look: asyncio.Task[HostFacts]) -> None:
        if not look.cancelled():
            self._host = look.result()
            self._reporter.changed()

    def _ask(self, wanted: TicketWanted) -> bool:
        if self._link.is_open:
            self._link.send(wanted)
        return self._link.is_open

    async def _drain(self, link: asyncio.Task[None]) -> None:
        """Refuse new jobs, let the running ones end within the bound, say goodbye."""
        self._notifier.notify("STOPPING=1")
        drain_s = self._settings.agent.drain_s
        log.info("drain_started", jobs=len(self._core.jobs), drain_s=drain_s)
        self._dispatch(DrainRequested())
        self._reporter.send()
        try:
            async with asyncio.timeout(drain_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("drain_timed_out", jobs_cut_off=len(self._core.jobs))
        self._link.close("the agent is shutting down")
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.coordinator.connect_timeout_s):
                await link
