"""Keeps the right experts awake: reads the table, has the cores decide off the loop, and acts where that is allowed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from time import perf_counter, time
from uuid import uuid4

import structlog

from moe2.common.errors import CommandErrorCode, Moe2Error
from moe2.common.health import HealthWarning
from moe2.common.link.messages import CancelJob, CommandAnswer, CommandOutcome, FromAgent, Job, ToAgent
from moe2.common.status import AgentRow, ProvisioningStatus
from moe2.coordinator.choosing.forecast import Roster
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.provisioning.decision import DAY_S, SMALL_FLEET, Decision, Outlook, Tolerances
from moe2.coordinator.provisioning.figures import (
    Fleet,
    busy_of,
    fleet_of,
    require_suspendable,
    require_wakeable,
    row_called,
    wakeable_of,
)
from moe2.coordinator.provisioning.held_jobs import HeldJobs
from moe2.coordinator.provisioning.hysteresis import Change, Transition
from moe2.coordinator.provisioning.problem import Limits, limits_of
from moe2.coordinator.provisioning.settings import ProvisioningSection
from moe2.coordinator.provisioning.shadow import Shadow
from moe2.coordinator.provisioning.state_files import FleetFile, Memory, MemoryFile
from moe2.coordinator.provisioning.statement import status_of, unknown_pins, warnings_of
from moe2.coordinator.provisioning.steering import CHANGE_S, Order, Steering, Wishes, command_of
from moe2.coordinator.provisioning.traffic import Asked, Forecast, Traffic
from moe2.coordinator.provisioning.trials import Circumstances
from moe2.coordinator.provisioning.waking import Send, wake

log = structlog.get_logger()

WATCH_EVERY_S = 2.0
DECIDE_EVERY_S = 60.0
INFORM_EVERY_S = 5.0
"""Between two decisions while experts are new: what becomes known of them is soon made use of."""
WAKE_AGAIN_S = 10.0
"""Between two magic packets for a host that is not seen yet."""
LEAD_S = 60.0
"""The traffic is looked up this far ahead, so that who is wanted then is awake by then."""
HISTORY_S = 42 * DAY_S
MOST_OF_TIME = 0.02
"""Share of the time that searches for larger fleets may take: the next one waits for so much longer than the last
took."""


def pause_s(since_news_s: float | None) -> float:
    """Seconds from one decision to the next, by those since an expert came or left; None while none is known."""
    is_new = since_news_s is None or since_news_s < DECIDE_EVERY_S
    return min(INFORM_EVERY_S, DECIDE_EVERY_S) if is_new else DECIDE_EVERY_S


class Keeper:
    """The slow level's shell.

    table: read, and told who can be woken. send: hands a message to a connected agent. on_message: takes a word about
    a job that an agent never got. earlier: asks for the requests since a time. elsewhere: asks for those of other
    coordinators that are new, given the time. price_per_j: what a joule of an answer is worth now. may_act: whether
    this coordinator is the one that decides, of those that share the fleet. on_wishes: told of an operator's wishes,
    for the others. One loop runs it; the searches run in a thread.
    """

    def __init__(
        self,
        settings: ProvisioningSection,
        *,
        table: CapabilityTable,
        scorer: Scorer,
        send: Send,
        on_message: Callable[[str, FromAgent], None],
        earlier: Callable[[float], Awaitable[Sequence[Asked]]],
        elsewhere: Callable[[float], Awaitable[Sequence[Asked]]],
        price_per_j: Callable[[], float],
        patience_s: Mapping[str, float],
        state_dir: Path,
        may_act: Callable[[], bool] = lambda: True,
        on_wishes: Callable[[Wishes], None] = lambda wishes: None,
    ) -> None:
        self._may_act, self._on_wishes = may_act, on_wishes
        self.scorer = scorer
        self._settings = settings
        self._patience_s = dict(patience_s)
        self._table, self._send = table, send
        self._earlier, self._elsewhere, self._price_per_j = earlier, elsewhere, price_per_j
        self._file, self._fleet_file = MemoryFile(state_dir), FleetFile(state_dir)
        memory = self._file.read()
        self._steering = Steering(
            max_changes_per_day=settings.max_changes_per_day, wishes=memory.wishes, run=f"slow-{uuid4().hex[:8]}"
        )
        self._shadow = Shadow(max_changes_per_day=settings.max_changes_per_day)
        self._steering.restore_not_woken(memory.not_woken)
        self._steering.restore_away(memory.away)
        self._kept = memory
        self._outlook = Outlook(Tolerances(settings.quality_loss, settings.late_share), perf_counter)
        self._traffic = Traffic()
        self._may_plan_s = self._may_decide_s = -math.inf
        """Before these times no search begins, so that searches take no more than their share of the time."""
        self._known: tuple[str, ...] = ()
        """Keys of the experts that the latest decision knew."""
        self._news_s: float | None = None
        """When an expert last came or left; None while none is known."""
        self._decision: Decision | None = None
        self._solve_s: float | None = None
        self._would: tuple[Transition, ...] = ()
        self._would_try: Transition | None = None
        self._held = HeldJobs(on_message)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unix_ahead_s = 0.0
        """The wall clock less the loop's, at the start, so that no clock that is set moves what is kept of times."""
        self._others_until_s = -math.inf
        """Until then changes can be those that another coordinator has ordered."""
        self._failure: str | None = None

    # --- What the daemon tells it -----------------------------------------------------------------------------------

    def use(self, settings: ProvisioningSection, patience_s: Mapping[str, float], scorer: Scorer) -> None:
        """Applies other settings from the next decision on."""
        if settings != self._settings:
            self._outlook.expire()
        self._settings, self._patience_s, self.scorer = settings, dict(patience_s), scorer
        self._steering.max_changes_per_day = settings.max_changes_per_day
        self._outlook.leeway.tolerances = Tolerances(settings.quality_loss, settings.late_share)

    def request_ended(self, asked: Asked, *, first_token_s: float | None) -> None:
        """Notes a request that was answered, for the rates and for what the day may still lose."""
        self._traffic.note(asked)
        if first_token_s is not None:
            late = first_token_s > self._patience_s.get(asked.category, self._settings.first_token_s)
            self._outlook.leeway.answered(time(), loss=self._decision.loss if self._decision else 0.0, late=late)

    def answered(self, agent_id: str, answer: CommandAnswer) -> None:
        """Takes an agent's answer to a command."""
        done = answer.outcome is CommandOutcome.DONE
        self._steering.answered(answer.command_id, done=done, code=answer.code, message=answer.message)
        if answer.code == CommandErrorCode.SUSPEND_FAILED:
            log.warning("host_stayed_awake", agent_id=agent_id, reason=answer.message)

    def agent_lost(self, agent_id: str) -> None:
        """An agent's session has ended, for whatever reason."""
        self._held.forget(agent_id)
        self._steering.lost(agent_id, asleep=self._table.is_asleep(agent_id))

    def send(self, agent_id: str, message: ToAgent) -> bool:
        """Hands a message to an agent; a job for a sleeping one is held, and its host is woken.

        Returns False where the agent is neither connected nor can be woken.
        """
        if self._send(agent_id, message):
            return True
        if isinstance(message, CancelJob):
            return self._held.cancel(agent_id, message.job_id)
        if not isinstance(message, Job) or not self._held.has_room:
            return False
        if not any(one.agent_id == agent_id for one in self._table.wakeable()):
            return False
        self._see()
        self._held.hold(agent_id, message)
        order = self._steering.wake(agent_id, self._now_s(), "a request that only it can serve")
        if order is not None:
            self._perform(order)
        return True

    def wish(self, verb: str, host: str) -> str:
        """Does what an operator asks for of a host, named by its agent's name or id; returns what was done, in words.

        verb: "sleep", "wake", "pin" or "unpin". Raises `UnknownHostError`, and Moe2Error where the agent forbids it.
        """
        row = row_called(self._rows(), host)
        wishes = self._steering.wishes
        match verb:
            case "sleep":
                require_suspendable(row, wakes_by_command=self._settings.wake_command is not None)
                self._steering.wishes = wishes.with_sleep(row.agent_id)
                text = f"{row.agent_name} goes to sleep when its jobs have ended, and stays so until `fleet wake`."
            case "wake":
                self._steering.wishes = wishes.without(row.agent_id)
                text = self._wake_wished(row)
            case "pin":
                self._steering.wishes = wishes.with_pin(row.agent_id)
                text = f"{row.agent_name} stays awake with all its models."
            case "unpin":
                self._steering.wishes = wishes.without(row.agent_id)
                text = f"{row.agent_name} is left to the slow level."
            case _:
                raise Moe2Error(f"There is no order {verb!r} for hosts.", remedy="Use sleep, wake, pin or unpin.")
        self._keep()
        self._on_wishes(self._steering.wishes)
        return text

    def _wake_wished(self, row: AgentRow) -> str:
        """Wakes a host because an operator asks for it; returns what was done, in words."""
        if row.connected:
            return f"{row.agent_name} is awake."
        if not row.asleep:
            # Whoever was switched off, or suspended by hand, said no goodbye; what wakes a host may still reach it.
            require_wakeable(row, wakes_by_command=self._settings.wake_command is not None)
            self._start(wake(row, self._rows(), self._send, self._settings.wake_command, f"wish-{uuid4().hex[:8]}"))
            return f"{row.agent_name} is lost, and has not said that it sleeps. It was called all the same, once."
        self._see()
        order = self._steering.wake(row.agent_id, self._now_s(), "an operator has asked for it")
        if order is not None:
            self._perform(order)
        return f"{row.agent_name} is being woken."

    def take_wishes(self, wishes: Wishes) -> None:
        """Takes over what an operator has said to another coordinator."""
        self._steering.wishes = wishes
        self._keep()

    # --- What it tells ------------------------------------------------------------------------------------------------

    def status(self) -> ProvisioningStatus:
        """What the slow level thinks and does."""
        return status_of(
            self._settings.mode,
            self._decision,
            self._shadow,
            self._would,
            solve_s=self._solve_s,
            pinned=self._pinned(),
            kept_asleep=self._steering.wishes.kept_asleep,
            names=self._names(),
            returning=() if self._settings.mode == "act" else self._steering.away,
        )

    def warnings(self) -> tuple[HealthWarning, ...]:
        """What an operator should know."""
        pinned = self._settings.pinned if self._settings.mode != "off" else ()
        unknown = unknown_pins(pinned, self._rows()) if pinned else None
        return (*self._steering.warnings(), *warnings_of(self._decision, self._failure, unknown))

    # --- What it does -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watches and decides until it is cancelled."""
        for sleeper in self._kept.sleepers:
            self._table.restore_sleeper(sleeper, self._now_s())
        self._steering.trials.restore(self._kept.trials, self._now_s())
        now_unix_s = time()
        self._unix_ahead_s = now_unix_s - self._now_s()
        changed_s = {
            key: tuple(at_unix_s - self._unix_ahead_s for at_unix_s in at)
            for key, at in self._kept.changed_unix_s.items()
        }
        self._steering.restore_changes(changed_s, self._now_s())
        earlier = await self._earlier(now_unix_s - HISTORY_S)
        self._traffic = Traffic()
        self._traffic.note_all(earlier)
        heard_s = self._now_s()
        decided_s = -DECIDE_EVERY_S
        try:
            while True:
                if self._acts:
                    self._watch()
                self._table.may_wake(self._wakeable())
                self._keep()
                if self._settings.mode != "off" and self._now_s() >= heard_s + DECIDE_EVERY_S:
                    heard_s = self._now_s()
                    self._traffic.note_all(await self._elsewhere(time()))
                since_news_s = None if self._news_s is None else self._now_s() - self._news_s
                due_s = max(decided_s + pause_s(since_news_s), self._may_decide_s)
                if self._settings.mode != "off" and self._may_act() and self._now_s() >= due_s:
                    decided_s = self._now_s()
                    await self._decide()
                    if len(self._known) > SMALL_FLEET:
                        self._may_decide_s = self._now_s() + (self._now_s() - decided_s) / MOST_OF_TIME
                await asyncio.sleep(WATCH_EVERY_S)
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            self._keep()

    @property
    def _acts(self) -> bool:
        """Whether anything of the fleet is to be watched for: a coordinator that only observes decides, and no more."""
        wishes = self._steering.wishes
        asked = bool(wishes.kept_asleep or wishes.pinned or self._held or self._steering.has_pending)
        unfinished = self._steering.trials.are_open or bool(self._steering.away)
        return self._settings.mode == "act" or asked or unfinished

    def _watch(self) -> None:
        """Sees what has changed, gives up what takes too long, obeys wishes, and sends held jobs to who is awake."""
        now_s = self._now_s()
        self._see()
        if self._settings.mode == "act":
            self._steering.pinned_by_settings = self._pinned()
        for late in self._steering.overdue(now_s):
            log.warning("change_overdue", host=late.host, change=late.change.value)
            if late.change is Change.WAKE:
                self._give_up(late.host, "its host was not woken in time")
        if self._may_act():
            returns = () if self._settings.mode == "act" else self._steering.return_orders(now_s)
            for order in (*self._steering.wished_orders(now_s), *self._steering.trial_ends(now_s), *returns):
                self._perform(order)
        for agent_id in self._held.agents:
            self._release(agent_id)

    def _see(self) -> None:
        rows = self._rows()
        fleet = fleet_of(rows, lambda _: {}, wakes_by_command=self._settings.wake_command is not None)
        now_s = self._now_s()
        if not self._may_act():
            self._others_until_s = now_s + CHANGE_S
        others_act = self._settings.mode == "act" and now_s < self._others_until_s
        self._steering.seen(fleet, busy_of(rows), now_s, others_act=others_act)

    async def _decide(self) -> None:
        """Decides who is to be awake, off the loop, and acts or remembers what it would have done."""
        now_unix_s = time()
        self._traffic.passed(now_unix_s)
        forecast = self._traffic.forecast(now_unix_s + LEAD_S)
        categories = tuple(one.category for one in forecast)
        # Also this in a thread: of a thousand hosts it takes longer than many a request.
        fleet, limits = await asyncio.to_thread(self._fleet, self._rows(), categories), self._limits()
        if not fleet.experts:
            self._decision = self._news_s = None
            self._known = ()
            return
        keys = tuple(expert.key for expert in fleet.experts)
        if keys != self._known:
            self._known, self._news_s = keys, self._now_s()
        is_old = self._now_s() >= self._may_plan_s and self._outlook.is_old(keys, now_unix_s)
        week = self._outlook.week(self._traffic, len(keys), now_unix_s) if is_old else None
        try:
            began_s = self._now_s()
            decision, took_s = await asyncio.to_thread(self._think, fleet, forecast, week, limits, now_unix_s)
            if week is not None and len(keys) > SMALL_FLEET:
                self._may_plan_s = self._now_s() + (self._now_s() - began_s) / MOST_OF_TIME
        except Exception as error:
            # A defect here must not end the service: the fleet goes on as it is, and the warning says so.
            log.exception("provisioning_failed")
            self._failure = f"{type(error).__name__}: {error}"
            return
        self._failure, self._decision, self._solve_s = None, decision, took_s
        if self._fleet_file.is_due(fleet, now_unix_s):
            await asyncio.to_thread(self._fleet_file.write, fleet, self._rows(), now_unix_s)
        if not decision.members and decision.standing_w is None:
            self._would = ()
            return
        again = self._outlook.wanted_again(now_unix_s)
        circumstances = Circumstances(decision.spare, self._traffic.is_quiet(now_unix_s))
        if self._settings.mode == "act":
            self._see()
            orders = self._steering.next_orders(decision.members, self._now_s(), wanted_again_s=again)
            orders = orders or self._steering.trial_orders(self._now_s(), circumstances)
            self._would = tuple(order.transition for order in orders)
            for order in orders:
                self._perform(order)
        elif self._settings.mode == "observe":
            self._see()
            busy = busy_of(self._rows())
            day = int(now_unix_s // DAY_S)
            found = self._shadow.step(fleet, decision.members, busy, self._now_s(), day, wanted_again_s=again)
            self._would = found or tuple(one for one in self._would if one != self._would_try)
            self._would_try = self._steering.would_try(self._now_s(), circumstances)
            if self._would_try is not None:
                self._would = (*self._would, self._would_try)

    def _think(
        self, fleet: Fleet, forecast: Forecast, week: Sequence[Forecast] | None, limits: Limits, now_unix_s: float
    ) -> tuple[Decision, float]:
        """The search itself, in a thread. It writes only what nobody else writes meanwhile."""
        if week is not None:
            self._outlook.plan(fleet, week, limits, now_unix_s)
        began_s = perf_counter()
        decision = self._outlook.decide(fleet, forecast, limits, now_unix_s)
        return decision, perf_counter() - began_s

    def _perform(self, order: Order) -> None:
        """Has a change made."""
        one = order.transition
        log.info("change_ordered", host=one.host, change=one.change.value, expert=one.expert, reason=one.reason)
        message = command_of(order)
        if message is None:
            row = next((row for row in self._rows() if row.agent_id == one.host), None)
            if row is not None:
                self._start(self._wake(row, order.order_id))
            return
        if one.change in (Change.SUSPEND, Change.UNLOAD):
            # Known before it goes, so that a coordinator that is killed meanwhile finds it again and brings it back.
            self._keep()
        if not self._send(one.host, message):
            self._steering.answered(order.order_id, done=False, code=CommandErrorCode.BUSY, message=None)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake(self, row: AgentRow, order_id: str) -> None:
        """Does what wakes a host, and sends packets until it is seen: one that is still falling asleep hears none."""
        command = self._settings.wake_command
        while True:
            await wake(row, self._rows(), self._send, command, order_id)
            await asyncio.sleep(WAKE_AGAIN_S)
            if not self._steering.waking(row.agent_id):
                return
            command = None

    def _release(self, agent_id: str) -> None:
        """Sends the jobs that are held for an agent that has come back, as soon as its experts take them.

        Those that it will never take are given back: it may come back without their model, or not at all.
        """
        row = next((row for row in self._rows() if row.agent_id == agent_id), None)
        if row is None or not (row.connected or row.asleep):
            self._give_up(agent_id, "its host is gone")
        elif row.asleep and not self._steering.waking(agent_id):
            self._give_up(agent_id, "its host was not woken")
        elif row.connected and row.report_age_s is not None:
            now_s = self._now_s()
            choosable = {one.model for one in self._table.choosable(now_s) if one.agent_id == agent_id}
            for job in self._held.take(agent_id, choosable):
                if not self._send(agent_id, job):
                    self._held.give_back(agent_id, job, "its agent has left")
            loading = {one.model for one in self._table.loading(now_s) if one.agent_id == agent_id}
            self._held.give_up(agent_id, "its host came back and does not serve the model now", but=loading)

    def _give_up(self, agent_id: str, why: str) -> None:
        self._table.may_wake(self._wakeable())
        self._held.give_up(agent_id, why)

    # --- What it reads ------------------------------------------------------------------------------------------------

    def _limits(self) -> Limits:
        return limits_of(
            self._settings,
            pinned=self._pinned(),
            kept_asleep=frozenset(self._steering.wishes.kept_asleep) | self._steering.unreachable,
            patience_s=self._patience_s,
            price_per_j=self._price_per_j(),
        )

    def _pinned(self) -> frozenset[str]:
        named = self._settings.pinned
        by_name = {row.agent_id for row in self._rows() if row.agent_name in named} if named else ()
        return frozenset(self._steering.wishes.pinned) | frozenset(by_name)

    def _wakeable(self) -> frozenset[str]:
        """Agents that may be woken for a request when they sleep: none in mode observe, which touches nothing."""
        if self._settings.mode != "act":
            return frozenset()
        by_command = self._settings.wake_command is not None
        kept = frozenset(self._steering.wishes.kept_asleep) | self._steering.unreachable
        return wakeable_of(self._rows(), by_command=by_command) - kept

    def _fleet(self, rows: tuple[AgentRow, ...], categories: Sequence[str]) -> Fleet:
        scores: dict[str, dict[str, float]] = {}
        if categories and (everyone := self._table.everyone()):
            self.scorer.fit(everyone)
            roster = Roster(everyone)
            for category in ("", *sorted(set(categories))):
                found = self.scorer.score("", roster, category or None).scores
                for key, score in zip(roster.keys, found.tolist(), strict=True):
                    scores.setdefault(key, {})[category] = score
        by_command = self._settings.wake_command is not None
        return fleet_of(rows, lambda key: scores.get(key, {}), wakes_by_command=by_command)

    def _rows(self) -> tuple[AgentRow, ...]:
        return self._table.rows(self._now_s())

    def _names(self) -> dict[str, str]:
        return {row.agent_id: row.agent_name for row in self._rows()}

    def _keep(self) -> None:
        steering = self._steering
        self._file.write(
            Memory(
                wishes=steering.wishes,
                sleepers=self._table.sleepers(steering.falling),
                trials=steering.trials.kept,
                not_woken=steering.not_woken,
                away=steering.away,
                changed_unix_s={
                    key: tuple(at_s + self._unix_ahead_s for at_s in changed_s)
                    for key, changed_s in steering.changes.items()
                },
            )
        )

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
