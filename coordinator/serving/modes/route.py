"""Route: one expert answers, and its stream passes through. PURE.

Before the client has seen a token another expert may take over: in the place of one that failed, or beside one that is
late, where the first token decides (a hedge, after Dean and Barroso, "The Tail at Scale", 2013), or beside one that is
still being loaded or woken, if it joined the fleet meanwhile. Afterwards a failure is told, unless the client asked
that another expert goes on from the text so far.
"""

from __future__ import annotations

from functools import partial
from weakref import ref

from moe2.common.errors import REQUEST_FAULTS, JobErrorCode
from moe2.common.link.messages import JobDone, JobFailed, JobScored, TokenPiece
from moe2.common.link.prompts import ChatPrompt
from moe2.common.link.reports import ExpertState
from moe2.coordinator.choosing.result import Member, NoExpert, Selection
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.effects import Completed, Effect, Failed
from moe2.coordinator.serving.life import MAX_ATTEMPTS, Lifecycle
from moe2.coordinator.serving.mode import ModeRun

MIN_PAUSE_S = 0.01
"""Shortest time between two looks for a second expert."""
HANG_PAUSE_S = 1.0
"""Time between two looks for an expert in the place of one that hangs."""
COMING_PAUSE_S = 0.25
"""Time until the first look for an expert that joined while the one that was asked is being loaded or woken."""
RESUMES_SINCE_PROTOCOL = 2
"""Older agents do not know `Submit.prefix`: theirs would be a second answer behind the first one's beginning."""

_FINAL = frozenset({JobErrorCode.INVALID_REQUEST, JobErrorCode.INVALID_GRAMMAR, JobErrorCode.DEADLINE_EXCEEDED})


class Route(ModeRun):
    """One expert's answer in progress: failover and hedging before the first token, resuming after it."""

    def __init__(self, life: Lifecycle) -> None:
        self._life = ref(life)
        self._last_failure: JobFailed | None = None
        self._look_at_s: dict[str, float] = {}
        """When to look again for a faster expert, by job; the first look is when the job is late."""
        self._look_beside_at_s: dict[str, float] = {}
        """When to look again for one that joined, by job of an expert that is being loaded or woken."""
        self._text: list[str] | None = [] if _can_resume(life) else None

    @property
    def life(self) -> Lifecycle:
        """The request's life, which lives as long as anybody asks this run anything; see `PanelRun`."""
        life = self._life()
        assert life is not None  # noqa: S101 - it is the life that asks
        return life

    @property
    def next_deadline_s(self) -> float | None:
        """When to look whether a second expert would be faster."""
        life = self.life
        if life.first_token_s is not None or life.hedge is not None or len(life.attempts) >= MAX_ATTEMPTS:
            return None
        running = life.running  # One at most, as there is no second one yet.
        return self._looks_s(running[0]) if running else None

    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        return self.life.answer(selection.first, selection, now_s)

    def tokens(self, attempt: Attempt, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        if self._text is not None:
            self._text += [piece.text for piece in pieces]
            if any(piece.is_reasoning for piece in pieces):
                # Another expert could go on with the words of an answer, not with what this one thought.
                self._text = None
        life = self.life
        if life.authors and life.authors[-1] is attempt:
            return life.deliver(pieces, now_s)
        return [*self._win(attempt, now_s), *life.deliver(pieces, now_s)]

    def vectors(self, attempt: Attempt, vectors: tuple[bytes, ...], now_s: float) -> list[Effect]:
        return [*self._win(attempt, now_s), *self.life.deliver_vectors(vectors, now_s)]

    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        reason, stop = (ended.reason, ended.stop) if isinstance(ended, JobDone) else ("stop", None)
        return [*self._win(attempt, now_s), *self.life.conclude(Completed(reason, stop), now_s)]

    def failed(self, attempt: Attempt, failed: JobFailed, now_s: float) -> list[Effect]:
        """Have another expert take over, unless it is too late for that, or the request itself is wrong."""
        # A crash or a refusal may pass; that the request itself is wrong stays the reason to give.
        blamed = self._last_failure is not None and self._last_failure.code in REQUEST_FAULTS
        if not blamed or failed.code in REQUEST_FAULTS:
            self._last_failure = failed
        if failed.code in _FINAL:
            return self.life.give_up(Failed(failed.code, failed.message), now_s)
        if self.life.running:
            return []
        if self.life.first_token_s is None:
            return self.life.choose(partial(self._go_on, may_wait=True), now_s)
        if not self.life.request.is_streamed and self._text is None:
            retracted = self.life.retract()
            return [*retracted, *self.life.choose(partial(self._go_on, may_wait=True), now_s)]
        return self._resume(failed, now_s)

    def time_passed(self, now_s: float) -> list[Effect]:
        """Have a second expert try beside a late one, if it can be faster."""
        [attempt] = self.life.running  # There is no second one yet.
        if attempt.hangs:
            return self.hangs(attempt, now_s)
        late_s = self._late_look_s(attempt)
        if _is_coming(attempt) and (late_s is None or now_s < late_s):
            known = frozenset(attempt.selection.outlook.forecast.roster.keys)
            return self.life.choose(partial(self._go_beside, attempt), now_s, excluded=known)
        return self.life.choose(partial(self._compare, attempt), now_s)

    def _compare(self, late: Attempt, chosen: Selection | NoExpert, now_s: float) -> list[Effect]:
        """Set the chosen expert to work beside a late one, if it is predicted to be faster and hedges are left."""
        waited_s = now_s - late.submitted_s
        begins_in_s = None if isinstance(chosen, NoExpert) else _begins_in_s(chosen.first)
        if isinstance(chosen, NoExpert) or begins_in_s is None or begins_in_s > waited_s:
            return self._look_later(late, waited_s if begins_in_s is None else begins_in_s - waited_s, now_s)

        def hedge(is_allowed: bool, now_s: float) -> list[Effect]:
            return self._help(chosen, now_s, is_hedge=True) if is_allowed else self._look_later(late, waited_s, now_s)

        return self.life.ask_to_hedge(hedge)

    def _go_beside(self, coming: Attempt, chosen: Selection | NoExpert, now_s: float) -> list[Effect]:
        """Set an expert to work that has joined since another one was chosen which still is not there.

        Those that could be chosen then were not, for good reasons. This uses up no hedge: nobody is late.
        """
        if isinstance(chosen, NoExpert) or chosen.first.expert.report.state is not ExpertState.READY:
            # Ever less often: a host may take minutes, and hundreds of requests may wait for it.
            self._look_beside_at_s[coming.job_id] = now_s + (now_s - coming.submitted_s) / 2
            return []
        return self._help(chosen, now_s)

    def _look_later(self, late: Attempt, pause_s: float, now_s: float) -> list[Effect]:
        """Look again for a faster expert after a pause: the later it is, the slower an expert would do."""
        self._look_at_s[late.job_id] = now_s + pause_s + MIN_PAUSE_S
        return []

    def hangs(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Have another expert answer in the place of one that hangs, which may still win: this uses up no hedge."""
        if self.life.first_token_s is not None or self.life.hedge or len(self.life.attempts) >= MAX_ATTEMPTS:
            return []
        # It may be what makes its engine hang, and likely is if it brings a grammar, a schema or tools of its own.
        if attempt.is_custom:
            return []
        return self.life.choose(partial(self._replace, attempt), now_s)

    def waits_behind_others(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Have the request wait for whoever has room first, unless an expert works on it already."""
        is_alone = self.life.running == [attempt] and attempt.alone_until is None
        return self.life.take_back(attempt, now_s) if is_alone and not attempt.has_begun else []

    def _replace(self, hanging: Attempt, chosen: Selection | NoExpert, now_s: float) -> list[Effect]:
        """Set the chosen expert to work in the place of one that hangs."""
        # To wait in another queue is no help: where all are that late, it would only make that worse.
        if isinstance(chosen, NoExpert) or chosen.first.prediction.shape.queued_ahead is not None:
            self._look_at_s[hanging.job_id] = now_s + HANG_PAUSE_S
            return []
        return self._help(chosen, now_s)

    def _help(self, chosen: Selection, now_s: float, *, is_hedge: bool = False) -> list[Effect]:
        todo = self.life.answer(chosen.first, chosen, now_s, is_hedge=is_hedge)
        self.life.hedge = self.life.attempts[-1]
        return todo

    def _late_look_s(self, attempt: Attempt) -> float | None:
        return self._look_at_s.get(attempt.job_id, attempt.due_s)

    def _looks_s(self, attempt: Attempt) -> float | None:
        # What may bring down one engine is not given to a second one beside it.
        if attempt.is_custom or attempt.alone_until is not None:
            return None
        late_s = self._late_look_s(attempt)
        if not _is_coming(attempt):
            return late_s
        beside_s = self._look_beside_at_s.get(attempt.job_id, attempt.submitted_s + COMING_PAUSE_S)
        return beside_s if late_s is None else min(beside_s, late_s)

    def _go_on(self, chosen: Selection | NoExpert, now_s: float, *, may_wait: bool = False) -> list[Effect]:
        """Submit to the best expert that has not failed this request yet, or conclude that there is none."""
        if len(self.life.attempts) < MAX_ATTEMPTS:
            self.life.refused = chosen if isinstance(chosen, NoExpert) else None
            if isinstance(chosen, Selection):
                return self.life.answer(chosen.first, chosen, now_s)
            if may_wait and self.life.may_wait_for(chosen):
                waits = self.life.await_room(self._go_on, now_s)
                if waits is not None:
                    return waits
        return self.life.nobody_left(self._last_failure, now_s)

    def _resume(self, failed: JobFailed, now_s: float, older: frozenset[str] = frozenset()) -> list[Effect]:
        """Have another expert go on from the text so far, or tell the client.

        older: keys of experts whose agents cannot go on from a text.
        """
        text = self._text
        if text is not None and self.life.n_tokens_left == 0:
            return self.life.conclude(Completed("length"), now_s)
        told = Failed(failed.code, failed.message)
        if text is None or len(self.life.attempts) >= MAX_ATTEMPTS:
            return self.life.conclude(told, now_s)

        def go_on(chosen: Selection | NoExpert, now_s: float) -> list[Effect]:
            if isinstance(chosen, NoExpert):
                return self.life.conclude(told, now_s)
            if chosen.first.expert.protocol < RESUMES_SINCE_PROTOCOL:
                return self._resume(failed, now_s, older | {chosen.first.expert.key})
            # A stop string cannot lie across the seam: an agent holds back what may be the beginning of one.
            return self.life.answer(chosen.first, chosen, now_s, prefix="".join(text))

        return self.life.choose(go_on, now_s, excluded=older)

    def _win(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Give the answer to this expert, if it has not won it already, and stop the other one that tries."""
        life = self.life
        if attempt in life.authors:
            return []
        life.authors.append(attempt)
        todo: list[Effect] = []
        for loser in life.running:
            if loser is attempt:
                continue
            if loser.due_s is not None and loser.due_s <= now_s:
                todo += life.suspect(loser, hangs=False)
            todo += life.stop(loser, ends_as=AttemptState.HEDGED)
        return todo


def _is_coming(attempt: Attempt) -> bool:
    """Whether the expert was not there when it was asked, and has not begun to work since."""
    return attempt.expert.report.state is not ExpertState.READY and attempt.prompt_tokens is None


def _can_resume(life: Lifecycle) -> bool:
    """Whether another expert may and can go on in the middle: not with a form, tools, logprobs, an echo or vectors."""
    request, generation = life.request, life.request.generation
    if not request.wish.resume:
        return False
    tools = request.prompt.tools if isinstance(request.prompt, ChatPrompt) else ()
    has_more = bool(tools or request.texts) or generation.logprobs is not None or generation.echo
    return generation.is_free and not has_more


def _begins_in_s(member: Member) -> float | None:
    """Predicted seconds until an expert's first token; None without a free slot or a measurement."""
    ttft_s = member.prediction.ttft_s
    return None if ttft_s is None or member.prediction.shape.queued_ahead is not None else ttft_s.p50
