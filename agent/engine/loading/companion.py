"""Loads the draft model of a session beside its model, or says why it does not guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from msgspec.structs import replace

from moe2.agent.engine.decoding.drafting import MAX_BEHIND, Drafter
from moe2.agent.engine.llama.adapters import apply_adapters
from moe2.agent.engine.llama.admission import refuse_beyond_memory
from moe2.agent.engine.llama.context import Context
from moe2.agent.engine.llama.model import Model, ModelError
from moe2.agent.engine.loading.warmup import WARMUP_DECODE_TOKENS, measured_alone, warm_up
from moe2.agent.engine.protocol import DraftSpec, ModelSpec
from moe2.agent.engine.speculation.costs import StepCosts

_MIN_BATCH_TOKENS = 64


class DraftError(ModelError):
    """A draft model that cannot guess; its model is served without."""

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message, code="draft_unusable", remedy=remedy)


def draft_spec(spec: ModelSpec) -> ModelSpec | None:
    """What is to be loaded as the draft model: as much context as the model has, of the same cache type.

    None where none is asked for. Raises `ModelError` where it cannot be, or memory has no room for both.
    """
    draft = spec.draft
    if draft is None:
        return None
    path = _checked(spec, draft)
    companion = replace(
        spec,
        path=path,
        gpu_layers=draft.gpu_layers,
        lora=draft.lora,
        batch_tokens=max(spec.batch_tokens, _MIN_BATCH_TOKENS, spec.slots * MAX_BEHIND),
        draft=None,
        require_gpu=False,
        kv_unified=True,
    )
    refuse_beyond_memory(companion, beside=spec)
    return companion


def _checked(spec: ModelSpec, draft: DraftSpec) -> str:
    """The path of the draft model. Raises `DraftError` for what cannot guess whatever its file is."""
    if draft.path is None:
        raise DraftError(
            f"The draft model {draft.name} is not served on this host.",
            remedy="Serve it here, or remove `draft`; the model has to be loaded again after that.",
        )
    if spec.pace is not None:
        raise DraftError(
            f"The draft model {draft.name} cannot be slowed to the pace of a simulated host, as its model is.",
            remedy="Remove `draft`, or `paced`.",
        )
    if not spec.speculation:
        raise DraftError(
            f"The draft model {draft.name} guesses nothing where speculation = false.",
            remedy="Remove one of the two settings.",
        )
    return draft.path


def open_drafter(
    companion: ModelSpec,
    model: Model,
    stack: ExitStack,
    *,
    threads: int,
    clock: Callable[[], float],
    work_clock: Callable[[], float],
) -> Drafter:
    """Load the draft model and measure it. The stack frees it. work_clock: by which its steps are compared.

    Raises `ModelError` where it cannot guess for `model`.
    """
    with ExitStack() as own:
        draft = Model(companion, on_progress=lambda _: None)
        own.callback(draft.close)
        if draft.vocabulary_sha256 != model.vocabulary_sha256:
            raise DraftError(
                f"The draft model {companion.path} has another vocabulary than its model: its tokens mean other texts.",
                remedy="Choose a smaller model of the same family; `moe2-agent models` shows the vocabularies.",
            )
        if draft.embeds or not draft.keeps_every_position:
            raise DraftError(
                f"The draft model {companion.path} {'writes no text' if draft.embeds else 'cannot take back tokens'}.",
                remedy="Choose a decoder-only model that is not recurrent.",
            )
        # llama.cpp wants a row of logits for each sequence, the one that fills up batches among them.
        context = Context(draft, companion, lanes=companion.slots, outputs=companion.slots + 1, threads=threads)
        own.callback(context.close)
        apply_adapters(draft, context, companion.lora)
        with measured_alone(companion.measuring_lock, clock=clock, sleep=time.sleep):
            prefill_rate, decode_rate = warm_up(
                context, draft, work_clock, most_tokens=min(context.batch_tokens, context.tokens - WARMUP_DECODE_TOKENS)
            )
        stack.push(own.pop_all())
    return Drafter(
        context,
        lanes=companion.slots,
        batch_tokens=context.batch_tokens,
        most_tokens=min(context.tokens, draft.trained_context_tokens or context.tokens),
        cuts_anywhere=context.cuts_anywhere,
        clock=work_clock,
        costs=StepCosts(step_s=1 / decode_rate, token_s=1 / prefill_rate),
    )
