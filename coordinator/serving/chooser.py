"""Asks who answers, with what the service knows besides reports, and learns from how it went. PURE.

What is learned of a request that has ended are the lengths of its prompt and its answer.
"""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.forecast import WorkLeft
from moe2.coordinator.choosing.lengths import Lengths
from moe2.coordinator.choosing.prefix_affinity import Affinity
from moe2.coordinator.choosing.refusal import if_loading
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Selection, still_down
from moe2.coordinator.choosing.selector import Selector, can_serve
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.serving.attempt import Attempt, Purpose
from moe2.coordinator.serving.effects import Completed
from moe2.coordinator.serving.judge import ExpertJudge
from moe2.coordinator.serving.life import Lifecycle

_ASKS_FOR_SLEEPERS = frozenset(
    {
        ErrorCode.NO_LIVE_EXPERT,
        ErrorCode.INFEASIBLE,
        ErrorCode.CONTEXT_EXCEEDED,
        ErrorCode.NO_CHAT_TEMPLATE,
        ErrorCode.NO_TOOLS,
        ErrorCode.NO_INFILL,
        ErrorCode.EXHAUSTED,
    }
)
"""Refusals by those who are awake after which a sleeping expert is asked for: waiting for them would not help."""


class InFlight:
    """The attempts in progress on each expert; the service keeps it."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        """By expert key; experts without any are left out."""
        self._attempts: dict[str, dict[str, Attempt]] = {}

    def begun(self, attempt: Attempt) -> None:
        """Take in that an expert was given a job."""
        key = attempt.expert.key
        attempts = self._attempts.setdefault(key, {})
        attempts[attempt.job_id] = attempt
        self.count[key] = len(attempts)

    def over(self, key: str, job_id: str) -> None:
        """Take in that an expert has nothing more to do for a job that it was given."""
        attempts = self._attempts[key]
        del attempts[job_id]
        if attempts:
            self.count[key] = len(attempts)
        else:
            del self.count[key], self._attempts[key]

    def work_left(self, now_s: float, key: str, busy: int) -> WorkLeft | None:
        """What those in progress on an expert have left; None where some of the `busy` are other coordinators'."""
        attempts = self._attempts.get(key, {}).values()
        if len(attempts) < busy:
            return None
        unread, to_write = 0.0, 0
        for attempt in attempts:
            unread += attempt.unread_tokens(now_s)
            to_write += attempt.to_write_tokens
        return WorkLeft(unread, to_write)


class Chooser:
    """Asks the selector among those who can take a request now; where nobody can, among those who load or sleep.

    use_breakers: whether experts that failed or hang are left out for a while.
    """

    def __init__(
        self,
        table: CapabilityTable,
        selector: Selector,
        judge: ExpertJudge,
        in_flight: InFlight,
        *,
        use_breakers: bool,
    ) -> None:
        self._table = table
        self._selector = selector
        self._judge = judge
        self._in_flight = in_flight
        self._use_breakers = use_breakers

    def planned(self, demand: Demand, model: str, now_s: float) -> Demand:
        """The demand as it is planned for: clients set limits far beyond any context, and mean none by them."""
        if demand.max_tokens is None:
            return demand
        largest = self._selector.largest_context(model, self._table.choosable(now_s))
        return demand if largest is None else demand.within(largest)

    def choose(
        self,
        request: SelectionRequest,
        now_s: float,
        *,
        affinity: Affinity | None = None,
        life: Lifecycle | None = None,
    ) -> Selection | NoExpert:
        """The choice of experts as things stand now. Runs nothing and changes nothing.

        affinity: the expert that has the beginning of the prompt in its cache. life: the request, where there is one;
        a suspect may not be given to every expert.
        """
        experts, in_flight = self._table.choosable(now_s), self._in_flight.count
        barred = self._judge.breakers.barred(now_s) if self._use_breakers else {}
        if barred or affinity is not None:
            request = replace(request, barred=barred, affinity=affinity)
        if request.restarts_seen:
            request = replace(request, excluded=request.excluded | still_down(request.restarts_seen, experts))
        if life is not None and self._judge.suspects:
            request = replace(request, reserved=self._judge.suspects.reserved_from(life, experts, in_flight))
        hosts = () if self._selector.fleet_watts_cap_w is None else self._table.host_powers()
        chosen = self._selector.select(
            request, experts, in_flight, self._table.epoch, hosts, partial(self._in_flight.work_left, now_s)
        )
        if isinstance(chosen, NoExpert) and chosen.code == ErrorCode.NO_LIVE_EXPERT:
            loading = [expert for expert in self._table.loading(now_s) if can_serve(request.model, expert)]
            if loading:
                return if_loading(chosen, request, loading)
        if isinstance(chosen, NoExpert) and chosen.code in _ASKS_FOR_SLEEPERS and (asleep := self._table.wakeable()):
            # Nobody awake can serve it. The epoch tells the selector apart what it remembers of either.
            roused = self._selector.select(request, asleep, in_flight, -1 - self._table.epoch, hosts)
            if not isinstance(roused, NoExpert) or chosen.code == ErrorCode.NO_LIVE_EXPERT:
                return roused
        return chosen


def learn_lengths(lengths: Lengths, life: Lifecycle) -> None:
    """Learns from every prompt that was read, and from an answer that one expert wrote from beginning to end."""
    for attempt in life.attempts:
        usage = attempt.usage
        # What is only scored was in the cache, or came with the choices.
        if attempt.purpose is not Purpose.SCORE and usage is not None and usage.decoded_tokens:
            foreseen = attempt.prediction.shape
            lengths.prompts.ran(attempt.expert.identity, life.request.demand, usage, foreseen)
            lengths.n_learned += 1
    _learn_answer(lengths, life)


def _learn_answer(lengths: Lengths, life: Lifecycle) -> None:
    attempt, outcome = life.leading, life.outcome
    # A panel's text is not one model's, and two authors in turn say nothing about either.
    if attempt is None or attempt.purpose is not Purpose.ANSWER or len(life.authors) > 1:
        return
    if isinstance(outcome, Completed) and attempt.usage is not None:
        lengths.answers.ended(
            attempt.selection.category,
            attempt.expert.identity,
            life.request.demand,
            attempt.usage.decoded_tokens,
            is_cut=outcome.reason == "length",
        )
