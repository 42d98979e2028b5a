"""The receipt: who answered, what it took, what it cost. PURE. The `moe2` object of every response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from moe2.common.energy import NEVER_RAN, Energy, WholeEnergy, total, unmeasured
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.explain import Decision, Predicted, decision_of, predicted_of, refusal_of
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.mode import Collaboration

N = TypeVar("N", int, float)


class ExpertLine(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's line on the receipt.

    purpose: a `Purpose`. outcome: an `AttemptState`. decoded_tokens: None where nobody can say. drafted_tokens,
    accepted_tokens, drafted_by_model, accepted_by_model: see `TokenCounts`.
    """

    expert: str
    agent: str
    model: str
    outcome: str
    decoded_tokens: int | None
    energy: WholeEnergy
    error: str | None
    purpose: str = "answer"
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    drafted_by_model: int | None = None
    accepted_by_model: int | None = None


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the answer. reasoning: those of `decoded` that came before the answer itself; None if nobody says.

    drafted: guesses that went through the model beside them; accepted: those of them that were right, and are among
    `decoded`. None where nothing is guessed, or nobody says. drafted_by_model, accepted_by_model: those of either that
    a draft model guessed, not the text; None where it guessed none.
    """

    prompt: int | None
    cached: int | None
    decoded: int | None
    reasoning: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    drafted_by_model: int | None = None
    accepted_by_model: int | None = None


class Seconds(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of the request's phases.

    queue, prefill, decode: on the agent, as measured there. admission: wait for an expert with room. overhead: in the
    coordinator, from the request's last byte to its dispatch, that wait left out. ttft, total: from the request's last
    byte, as seen by the coordinator.
    simulated: an expert was held to the speed of a host that is not there.
    """

    overhead: float | None
    queue: float | None
    prefill: float | None
    decode: float | None
    ttft: float | None
    total: float | None
    admission: float | None = None
    simulated: bool | None = None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a request took and cost, and who answered it.

    energy: the sum over all attempts, those that failed or were outvoted included. tokens: of the answer, whoever
    wrote it. seconds, predicted, decision: of the attempt that answered, else of the last one.
    collaboration: what each member of a panel contributed; None where one expert answers. collaborations: the same of
    each answer, in their order, where a request has asked for several; empty for one, or where all have none.
    exceeded: names of the budgets that turned out not to be kept.
    max_tokens_within_context: what was left for the answer in the context of its expert, where the request's
    `max_tokens` asked for more; None where the limit held as it was.
    client_request_id: the client's own id of the request, where it sent one.
    reasoning_j: joules of `energy` that went into the answer's reasoning; None without any, or where it is not known.
    """

    request_id: str
    mode: str
    experts: tuple[ExpertLine, ...]
    tokens: TokenCounts
    seconds: Seconds
    predicted: Predicted | None
    energy: WholeEnergy
    decision: Decision | None
    collaboration: Collaboration | None = None
    collaborations: tuple[Collaboration | None, ...] = ()
    exceeded: tuple[str, ...] = ()
    max_tokens_within_context: int | None = None
    client_request_id: str | None = None
    reasoning_j: float | None = None


def receipt_of(life: Lifecycle) -> Receipt:
    """The receipt of a request, complete once it has ended."""
    last = life.leading
    usage = last.usage if last else None
    lines = tuple([_line(attempt) for attempt in life.attempts])
    energy = NEVER_RAN if life.outcome and not lines else total([line.energy for line in lines])
    tokens = _tokens(life, usage)
    arrived_s = life.request.arrived_s
    return Receipt(
        request_id=life.request.request_id,
        mode=last.selection.mode if last else Mode.ROUTE,
        experts=lines,
        tokens=tokens,
        seconds=Seconds(
            overhead=life.overhead_s,
            queue=usage.queue_s if usage else None,
            prefill=usage.prefill_s if usage else None,
            decode=usage.decode_s if usage else None,
            ttft=None if life.first_token_s is None else life.first_token_s - arrived_s,
            total=None if life.concluded_s is None else life.concluded_s - arrived_s,
            admission=life.waited_s if lines or life.outcome else None,
            simulated=any(attempt.expert.report.paced for attempt in life.attempts) if lines else None,
        ),
        predicted=_predicted(last) if last else None,
        energy=WholeEnergy.of(energy),
        decision=_decision(life, last),
        collaboration=life.run.collaboration if life.run else None,
        exceeded=_exceeded(life, energy, tokens),
        max_tokens_within_context=_clamped_to(life, last),
        client_request_id=life.request.client_request_id,
        reasoning_j=usage.reasoning_j if usage else None,
    )


def joint_receipt(lives: Sequence[Lifecycle], receipts: Sequence[Receipt]) -> Receipt:
    """The receipt of a request that asked for several answers: of the first one, with what all took together.

    Tokens are counted as OpenAI counts them: each prompt once, however many answers it has. Unknown in one is unknown
    in the sum.
    """
    first = receipts[0]
    prompts = {id(life.request.prompt): receipt.tokens for life, receipt in zip(lives, receipts, strict=True)}
    collaborations = tuple(receipt.collaboration for receipt in receipts)
    totals_s = [receipt.seconds.total for receipt in receipts]
    return msgspec.structs.replace(
        first,
        experts=tuple(line for receipt in receipts for line in receipt.experts),
        tokens=TokenCounts(
            prompt=_sum(tokens.prompt for tokens in prompts.values()),
            cached=_sum(tokens.cached for tokens in prompts.values()),
            decoded=_sum(receipt.tokens.decoded for receipt in receipts),
            reasoning=_sum(receipt.tokens.reasoning for receipt in receipts),
            drafted=_sum(receipt.tokens.drafted for receipt in receipts),
            accepted=_sum(receipt.tokens.accepted for receipt in receipts),
            drafted_by_model=_sum_known(receipt.tokens.drafted_by_model for receipt in receipts),
            accepted_by_model=_sum_known(receipt.tokens.accepted_by_model for receipt in receipts),
        ),
        seconds=msgspec.structs.replace(
            first.seconds,
            ttft=min((s for receipt in receipts if (s := receipt.seconds.ttft) is not None), default=None),
            total=None if None in totals_s else max(s for s in totals_s if s is not None),
        ),
        energy=WholeEnergy.of(total([receipt.energy for receipt in receipts])),
        reasoning_j=_sum(receipt.reasoning_j for receipt in receipts),
        collaborations=collaborations if any(collaborations) else (),
        exceeded=tuple(dict.fromkeys(name for receipt in receipts for name in receipt.exceeded)),
    )


def _sum(parts: Iterable[N | None]) -> N | None:
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def _sum_known(parts: Iterable[N | None]) -> N | None:
    """The sum of what there is; None where there is nothing."""
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _tokens(life: Lifecycle, usage: JobUsage | None) -> TokenCounts:
    """The tokens of the answer; counted here where several wrote it in turn, as one may not have lived to report."""
    if len(life.authors) < 2:
        written = life.run.answer_tokens if life.run else None
        if usage is None:
            return TokenCounts(prompt=None, cached=None, decoded=written)
        return TokenCounts(
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            decoded=usage.decoded_tokens if written is None else written,
            reasoning=usage.reasoning_tokens,
            drafted=usage.drafted_tokens,
            accepted=usage.accepted_tokens,
            drafted_by_model=usage.model_drafted_tokens,
            accepted_by_model=usage.model_accepted_tokens,
        )
    first = life.authors[0].usage
    return TokenCounts(
        prompt=first.prompt_tokens if first else None,
        cached=first.cached_tokens if first else None,
        decoded=life.n_tokens_written,
    )


def _exceeded(life: Lifecycle, energy: Energy, tokens: TokenCounts) -> tuple[str, ...]:
    if life.concluded_s is None or not life.attempts:
        return ()
    return life.limits.exceeded(
        first_token_s=life.first_token_s, end_s=life.concluded_s, joules=energy.joules, tokens=tokens.decoded
    )


def _clamped_to(life: Lifecycle, last: Attempt | None) -> int | None:
    """What the context of the answering expert left for an answer that might have been longer."""
    most = life.request.generation.max_tokens
    if last is None or last.usage is None or last.usage.prompt_tokens is None or most is None:
        return None
    left = max(0, last.expert.report.context_tokens - last.usage.prompt_tokens)
    return left if most > left else None


def _decision(life: Lifecycle, last: Attempt | None) -> Decision | None:
    """The decision of the attempt that answers, else the refusal; made once, although receipts are made again."""
    decided = last.selection if last else life.refused
    if decided is None:
        return None
    if life.shown is None or life.shown[0] is not decided:
        explain = life.request.wish.explain
        of = decision_of(decided, explain) if isinstance(decided, Selection) else refusal_of(decided, explain)
        life.shown = decided, of
    return life.shown[1]


def _predicted(attempt: Attempt) -> Predicted:
    selection = attempt.selection
    return predicted_of(selection.predicted if selection.mode.is_panel else attempt.prediction)


def _line(attempt: Attempt) -> ExpertLine:
    expert, usage = attempt.expert, attempt.usage
    return ExpertLine(
        expert=expert.key,
        agent=expert.agent_name,
        model=expert.model,
        outcome=attempt.state,
        decoded_tokens=usage.decoded_tokens if usage else None,
        energy=WholeEnergy.of(_energy(attempt)),
        error=attempt.error,
        purpose=attempt.purpose,
        drafted_tokens=usage.drafted_tokens if usage else None,
        accepted_tokens=usage.accepted_tokens if usage else None,
        drafted_by_model=usage.model_drafted_tokens if usage else None,
        accepted_by_model=usage.model_accepted_tokens if usage else None,
    )


def _energy(attempt: Attempt) -> Energy:
    if attempt.usage is not None:
        return attempt.usage.energy
    if attempt.state is AttemptState.FAILED:
        return NEVER_RAN
    return unmeasured(attempt.error or "not reported yet")
