"""Consensus: members write whole answers one after the other, and their final answers are voted on. PURE.

Nobody else is asked once the leading answer cannot lose, or is right with the wanted probability. Where the limits on
seconds leave no time to ask in turn, everybody who is left is asked at once. The client gets the whole text of one
member that gave the winning answer. Where nobody gives a final answer, one expert answers as in mode `route`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from moe2.common.link.messages import JobDone, JobFailed, JobScored, TokenPiece
from moe2.coordinator.answers.extraction import Answer, extract
from moe2.coordinator.answers.vote import Settled, Vote
from moe2.coordinator.choosing.mixture import renormalised
from moe2.coordinator.choosing.request import ASSUMED_ANSWER_TOKENS, ROUTE_ONLY
from moe2.coordinator.choosing.result import Member, NoExpert, Selection, VoteRule
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import Attempt, Purpose
from moe2.coordinator.serving.effects import Completed, Effect, Remark
from moe2.coordinator.serving.life import MAX_ATTEMPTS, Lifecycle
from moe2.coordinator.serving.mode import Collaboration, MemberShare
from moe2.coordinator.serving.modes.panel import PanelRun, patience_s
from moe2.coordinator.serving.modes.route import Route

ENDLESS = 4
"""A member may write so many times the planned answer where neither the client nor a budget of joules bounds it."""
MAX_SILENT = 2
"""After so many members without a final answer a question whose form is not known is taken to have none."""
SAME_SCORE = 0.005
NOTE = "No final answer was found in what {} wrote, so that one expert's text is the answer."


def planned_tokens(member: Member) -> int:
    """The longest text that a member's joules and seconds at p95 were predicted for."""
    prediction = member.prediction
    return prediction.shape.decoded_tokens if prediction.longest_tokens is None else prediction.longest_tokens


@dataclass
class _Written:
    """What one member has written."""

    member: Member
    pieces: list[TokenPiece] = field(default_factory=list)
    reason: str | None = None
    """Why it ended; None while it goes on."""
    answer: Answer | None = None

    @property
    def text(self) -> str:
        """The text behind what a reasoning model thought first."""
        return "".join(piece.text for piece in self.pieces if not piece.is_reasoning)


class Consensus(PanelRun):
    """A vote over final answers in progress. The one fallback within is a run of mode `route`."""

    def __init__(self, life: Lifecycle) -> None:
        super().__init__(life)
        self._form = life.request.answer_form
        self._selection: Selection | None = None
        self._rule = VoteRule((), 0.0, None, 0.0, 0.0, ())
        self._vote = Vote({}, 0.0)
        self._queue: list[Member] = []
        self._written: dict[str, _Written] = {}
        self._end_by_s: float | None = None
        self._settled: Settled | None = None
        self._winner: Attempt | None = None
        self._route: Route | None = None
        self._note: str | None = None

    # --- What the lifecycle asks ------------------------------------------------------------------------------------

    @property
    def leading(self) -> Attempt | None:
        if self._winner or self._route:
            # While another expert answers alone, it is the latest attempt.
            return self._winner
        return super().leading

    @property
    def next_deadline_s(self) -> float | None:
        if self._route:
            return self._route.next_deadline_s
        may_act = bool(self._queue) or len(self._due_s) < len(self.active)
        return min(self._due_s.values()) if self._due_s and may_act else None

    @property
    def collaboration(self) -> Collaboration:
        asked = [attempt for attempt in self.life.attempts if attempt.job_id in self._written]
        voted = [attempt for attempt in asked if self._written[attempt.job_id].reason is not None]
        weights = renormalised([self._vote.weights[attempt.expert.key] for attempt in voted]).tolist() if voted else []
        return Collaboration(
            members=tuple(self._share(attempt, weight) for attempt, weight in zip(voted, weights, strict=True)),
            dropped=tuple(self.dropped),
            answer_kind=self._form.kind.value if self._form.kind else self._kind_found(),
            settled=self._settled,
            probability=self._vote.probability if self._vote.leader is not None else None,
            not_asked=tuple(member.expert.key for member in self._queue),
            note=self._note or self._rule.note,
        )

    # --- What happens -----------------------------------------------------------------------------------------------

    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        self._selection, self._queue = selection, list(selection.members)
        keys = [member.expert.key for member in selection.members]
        rule = selection.vote or VoteRule((1.0,) * len(keys), 0.0, None, 0.0, 0.0, ())
        self._rule, self._vote = rule, Vote(dict(zip(keys, rule.weights, strict=True)), rule.other)
        end_s = selection.budgets.soonest_end_s
        self._end_by_s = None if end_s is None else now_s + end_s
        return self._ask(now_s)

    def tokens(self, attempt: Attempt, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        if attempt.job_id in self._written:
            self._written[attempt.job_id].pieces.extend(pieces)
            return []
        return self._route.tokens(attempt, pieces, now_s) if self._route else []

    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        written = self._written.get(attempt.job_id)
        if written is None:
            return self._route.ended(attempt, ended, now_s) if self._route else []
        if attempt not in self.active or written.reason is not None:
            return []
        written.reason = ended.reason if isinstance(ended, JobDone) else "stop"
        written.answer = extract(written.text, self._form, is_complete=written.reason != "length")
        self._vote.add(attempt.expert.key, written.answer.key if written.answer else None)
        self._due_s.pop(attempt.job_id, None)
        return [*self._remark(), *self.proceed(now_s)]

    def failed(self, attempt: Attempt, failed: JobFailed, now_s: float) -> list[Effect]:
        if self._route and attempt.job_id not in self._written:
            if self.life.first_token_s is None and (spoken := self._best_text()) is not None:
                self._route = None
                return self._deliver(spoken, now_s)
            return self._route.failed(attempt, failed, now_s)
        return super().failed(attempt, failed, now_s)

    def hangs(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Ask the next member beside one that hangs, unless it may be what makes its engine hang."""
        if self._route:
            return self._route.hangs(attempt, now_s)
        return [] if attempt.is_custom or not self._queue else self._ask(now_s)

    def time_passed(self, now_s: float) -> list[Effect]:
        """Drop members that are late where others have answered; else ask the next one beside them."""
        if self._route:
            return self._route.time_passed(now_s)
        late = [attempt for attempt in self.active if self._due_s.get(attempt.job_id, math.inf) <= now_s]
        somebody_is_there = len(self._due_s) < len(self.active)
        todo: list[Effect] = []
        for attempt in late:
            todo += self.life.suspect(attempt, hangs=False)
            if somebody_is_there:
                attempt.error = "late: the others were there"
                todo += self.life.stop(attempt)
                self.drop(attempt, attempt.error)
            else:
                self._due_s[attempt.job_id] = now_s + self._patience_s(attempt)
        return [*todo, *(self.proceed(now_s) if somebody_is_there else self._ask(now_s))]

    # --- What follows -----------------------------------------------------------------------------------------------

    def proceed(self, now_s: float) -> list[Effect]:
        """Deliver the winner once the vote is settled, else ask whoever is next; wait while somebody writes."""
        waiting = [attempt for attempt in self.active if attempt.job_id in self._due_s]
        if not self._vote.answers and not waiting and not self._queue:
            return self._nobody_left(now_s)
        left = [*(attempt.expert.key for attempt in waiting), *(member.expert.key for member in self._queue)]
        self._settled = self._vote.settled(left, self._rule.wanted)
        if self._settled and (winner := self._vote.leader) is not None:
            return self._deliver(self._speaker(winner), now_s)
        if not left or self._is_unanswerable():
            return self._fall_back(now_s)
        return [] if waiting else self._ask(now_s)

    def round_over(self, now_s: float) -> list[Effect]:
        return self.proceed(now_s)

    def _ask(self, now_s: float) -> list[Effect]:
        """Ask the next member, or all that are left where there is no time to ask them in turn."""
        assert self._selection is not None  # noqa: S101 - the run has begun
        number = len(self._queue) if self._is_in_a_hurry(now_s) else 1
        asked, self._queue = self._queue[:number], self._queue[number:]
        todo: list[Effect] = []
        for member in asked:
            limit = self._token_limit(member)
            todo += self.life.answer(member, self._selection, now_s, Purpose.CANDIDATE, max_tokens=limit)
            attempt = self.life.attempts[-1]
            self._written[attempt.job_id] = _Written(member)
            self.active.append(attempt)
            self._due_s[attempt.job_id] = now_s + self._patience_s(attempt)
        return todo

    def _is_in_a_hurry(self, now_s: float) -> bool:
        """True where members asked in turn would end too late, at p95."""
        if self._end_by_s is None:
            return False
        spans = [member.prediction.total_s for member in self._queue]
        return now_s + sum(span.p95 for span in spans if span is not None) > self._end_by_s

    def _token_limit(self, member: Member) -> int | None:
        """Most tokens that a member may write: as many as its share of the joules pays for.

        Its share of the budget is as large as its part of the joules that all members are predicted to take.
        """
        selection, request = self._selection, self.life.request
        assert selection is not None  # noqa: S101 - the run has begun
        planned = planned_tokens(member)
        predicted_j, budget_j = member.prediction.energy_j, selection.budgets.energy_budget_j
        if budget_j is None or predicted_j is None or predicted_j.p95 <= 0:
            return None if request.demand.max_tokens is not None else ENDLESS * max(ASSUMED_ANSWER_TOKENS, planned)
        all_j = sum(other.prediction.energy_j.p95 for other in selection.members if other.prediction.energy_j)
        return max(1, int(planned * max(1.0, budget_j / all_j)))

    def _patience_s(self, attempt: Attempt) -> float:
        """Seconds after which a member is late: twice its p95 for the longest text that it may write."""
        prediction, planned = attempt.prediction, planned_tokens(attempt.member)
        if prediction.total_s is None:
            return patience_s(None)
        longest = self._token_limit(attempt.member) or planned
        more = max(0, longest - planned) * (prediction.per_token_s.p95 if prediction.per_token_s else 0.0)
        return patience_s(prediction.total_s.p95 + more)

    def _is_unanswerable(self) -> bool:
        """True where the form of an answer is not known, and what was written so far holds none."""
        return self._form.kind is None and self._vote.leader is None and len(self._vote.answers) >= MAX_SILENT

    def _speaker(self, answer: str) -> Attempt:
        """The member whose text the client gets: the heaviest that gave the answer, if possible with a whole text."""
        keys = self._vote.supporters(answer)
        found = [attempt for key in keys for attempt in self.active if attempt.expert.key == key]
        whole = [attempt for attempt in found if self._written[attempt.job_id].reason == "stop"]
        return (whole or found)[0]

    def _best_text(self) -> Attempt | None:
        """The member with the best score among those that have written a whole text."""
        done = [attempt for attempt in self.active if self._written[attempt.job_id].reason is not None]
        return max(done, key=lambda attempt: (attempt.member.score, attempt.member.weight), default=None)

    def _fall_back(self, now_s: float) -> list[Effect]:
        """Have the best expert answer alone: by its text if it has written one, else as in mode `route`."""
        best = self._best_text()
        if best is None:
            return self._nobody_left(now_s)
        count = len(self._vote.answers)
        self._note = NOTE.format("1 member" if count == 1 else f"{count} members")

        def go_on(chosen: Selection | NoExpert, now_s: float) -> list[Effect]:
            full = len(self.life.attempts) >= MAX_ATTEMPTS
            if full or isinstance(chosen, NoExpert) or chosen.first.score <= best.member.score + SAME_SCORE:
                return self._deliver(best, now_s)
            self._outvote(None)
            self._route = Route(self.life)
            return self._route.begin(chosen, now_s)

        stopped = self._stop_rest()
        return [*stopped, *self.life.choose(go_on, now_s, modes=ROUTE_ONLY)]

    def _deliver(self, speaker: Attempt, now_s: float) -> list[Effect]:
        written = self._written[speaker.job_id]
        self._winner = speaker
        if speaker.state is AttemptState.OUTVOTED:
            # Another expert was to answer in its place, and has failed.
            speaker.state = AttemptState.ANSWERED
        stopped = self._stop_rest()
        self._outvote(written.answer if self._note is None else None)
        delivered = self.life.deliver(tuple(written.pieces), now_s) if written.pieces else []
        return [*stopped, *delivered, *self.life.conclude(Completed(written.reason or "stop"), now_s)]

    def _stop_rest(self) -> list[Effect]:
        """Stop the members that still write."""
        running = [attempt for attempt in self.active if attempt.job_id in self._due_s]
        for attempt in running:
            attempt.error = "the vote was settled without it"
        self._due_s.clear()
        return [effect for attempt in running for effect in self.life.stop(attempt)]

    def _outvote(self, answer: Answer | None) -> None:
        """Account for members that gave another answer than the winning one. answer: None where nobody has won."""
        for attempt in self.active:
            given = self._written[attempt.job_id].answer
            has_won = attempt is self._winner or (answer is not None and given is not None and given.key == answer.key)
            if not has_won and attempt.state is AttemptState.ANSWERED:
                attempt.state = AttemptState.OUTVOTED

    def _remark(self) -> list[Effect]:
        """Tell a waiting client how far the vote is."""
        of = len(self._vote.answers) + len(self._due_s) + len(self._queue)
        return [Remark(f"{len(self._vote.answers)} of at most {of} members have answered")]

    def _share(self, attempt: Attempt, weight: float) -> MemberShare:
        answer = self._written[attempt.job_id].answer
        return MemberShare(
            expert=attempt.expert.key,
            weight=weight,
            answer=answer.key if answer else None,
            log_odds=self._vote.weights[attempt.expert.key],
            joules=attempt.usage.energy.joules if attempt.usage else None,
        )

    def _kind_found(self) -> str | None:
        """The kind of the answer that leads, where the request does not tell; None where nobody gave one."""
        found = (written.answer for written in self._written.values())
        leader = self._vote.leader
        return next((answer.kind.value for answer in found if answer is not None and answer.key == leader), None)
