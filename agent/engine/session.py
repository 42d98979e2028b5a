"""Puts the child's parts together around one model: load, warm up, decode, free."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from moe2.agent.engine.calls.forms import BARE, HARMONY, Caller
from moe2.agent.engine.decoding.batch import Lanes, lanes_for
from moe2.agent.engine.decoding.decoder import Decoder
from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.embedding import Embedder
from moe2.agent.engine.decoding.guessing import Guessing
from moe2.agent.engine.decoding.intake import Intake, Limits
from moe2.agent.engine.decoding.matched import MatchedDraw
from moe2.agent.engine.decoding.pacing import PacedCache
from moe2.agent.engine.decoding.shelf import Shelf
from moe2.agent.engine.llama.adapters import apply_adapters
from moe2.agent.engine.llama.admission import refuse_beyond_memory
from moe2.agent.engine.llama.capacity import host_free_bytes
from moe2.agent.engine.llama.context import Context
from moe2.agent.engine.llama.memory import CACHE_TYPE_BYTES
from moe2.agent.engine.llama.model import Model, ModelError, start_backend
from moe2.agent.engine.llama.sampler import Sampler
from moe2.agent.engine.loading.companion import draft_spec, open_drafter
from moe2.agent.engine.loading.defaults import defaults_of
from moe2.agent.engine.loading.offload import refuse_without_gpu, where_it_is
from moe2.agent.engine.loading.warmup import (
    WARMUP_DECODE_TOKENS,
    measured_alone,
    measured_batches,
    warm_up,
    warm_up_vectors,
)
from moe2.agent.engine.prompt.quotation import Quotation
from moe2.agent.engine.prompt.request import RequestReader
from moe2.agent.engine.prompt.template import ChatTemplate, TemplateError
from moe2.agent.engine.prompt.thinking import Thinker, marks_of
from moe2.agent.engine.protocol import MAX_SEQUENCES, Event, Loaded, ModelSpec
from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.speculation import Speculation
from moe2.agent.engine.structure.constraint import constraint_of
from moe2.agent.engine.structure.matcher import Vocabulary
from moe2.agent.engine.structure.matchers import Matchers
from moe2.common.generation import completed
from moe2.common.link.messages import Submit
from moe2.common.link.reports import MAX_TEMPLATE_VARIABLES
from moe2.common.placement import gpu_layers

_SPARE_MATCHERS = 2
"""Grammars compiled ahead for jobs that wait for a slot."""
_IDLE_PART = 64
_IDLE_PART_ON_GPU = 8
"""When no job runs, prefixes stay in a shared cache if they fill less than one part in this many; more goes on the
shelf. A 135M model on two x86-64 cores decodes by 13 to 15 % more slowly beside a cache full of them. On a GPU more
stays, as what leaves has to cross the bus."""
_MIN_OUTPUTS = 64
"""Rows of logits in one batch: bounds the memory for them."""
_MAX_THREADS = 512
"""llama.cpp's own bound on threads (GGML_MAX_N_THREADS)."""
_TEXTS_AT_ONCE = 32
"""Texts in one batch of an embedding model."""
_MAX_CONTEXT_TOKENS = 2**27
_MIN_BATCH_TOKENS = 8


class _FreeDraw:
    """A sampler bound to the context it samples from."""

    is_ready = True

    def __init__(self, sampler: Sampler, context: Context) -> None:
        self._sampler = sampler
        self._context = context

    def sample(self, place: int) -> int:
        return self._sampler.sample(self._context, place)

    def sample_kept(self, logits: Logits) -> int:
        raise RuntimeError("a free draw is always ready")

    def close(self) -> None:
        self._sampler.close()


@contextmanager
def open_session(
    spec: ModelSpec,
    *,
    on_progress: Callable[[float], None],
    emit: Callable[[Event], None],
    log: Callable[[str], None],
    clock: Callable[[], float],
    wake: Callable[[str], None],
    work_clock: Callable[[], float] | None = None,
) -> Iterator[Decoder | Embedder]:
    """Load a model and emit `Loaded`; what is returned runs its jobs until the context is left. Raises `ModelError`.

    wake: called from another thread with the id of a job that the decoder is to resume.
    work_clock: processor time of the calling thread in seconds. Steps are compared by it where no GPU takes part and no
    pace is set, as other processes do not lengthen it. None for `clock`.
    """
    began_at_s = clock()
    check_spec(spec)
    with ExitStack() as stack:
        stack.callback(start_backend(log))
        refuse_without_gpu(spec)
        refuse_beyond_memory(spec)
        companion, draft_fault = _companion(spec)
        model = Model(spec, on_progress=on_progress)
        stack.callback(model.close)
        if model.embeds:
            yield _embedder(model, spec, stack, emit=emit, clock=clock, began_at_s=began_at_s)
            return
        lanes = lanes_for(spec.slots, kv_unified=spec.kv_unified)
        outputs = min(max(_MIN_OUTPUTS, spec.slots), spec.batch_tokens)
        context = Context(model, spec, lanes=lanes, outputs=outputs, threads=spec.threads or physical_cores())
        stack.callback(context.close)
        apply_adapters(model, context, spec.lora)
        placement, gpu_fault = where_it_is(spec)
        cache = context if spec.pace is None else PacedCache(context, spec.pace, clock=clock, sleep=time.sleep)
        draft_layers = companion.gpu_layers if companion is not None else 0
        if work_clock is None or spec.pace is not None or gpu_layers(placement) or draft_layers:
            work_clock = clock
        with measured_alone(spec.measuring_lock, clock=clock, sleep=time.sleep):
            prefill_rate, decode_rate = warm_up(
                cache, model, clock, most_tokens=min(context.batch_tokens, context.lane_tokens - WARMUP_DECODE_TOKENS)
            )
            room = min(outputs, context.batch_tokens, context.lane_tokens)
            measured_s = measured_batches(cache, model, work_clock, most_tokens=room) if spec.speculation else {}
        drafter = None
        if companion is not None and not context.gives_back_latest:
            draft_fault = f"{spec.path} is recurrent and cannot give back wrong guesses. Remove `draft`."
        elif companion is not None:
            try:
                drafter = open_drafter(
                    companion,
                    model,
                    stack,
                    threads=spec.threads or physical_cores(),
                    clock=clock,
                    work_clock=work_clock,
                )
            except ModelError as error:
                draft_fault = str(error)
        templates = _templates(model, log)
        defaults = defaults_of(spec.sampling, model.metadata)
        emit(
            Loaded(
                facts=model.facts(
                    supports_tools=templates.supports_tools,
                    supports_thinking=templates.thinker is not None,
                    template_variables=templates.variables,
                    sampling=defaults,
                ),
                load_s=clock() - began_at_s,
                context_tokens=context.lane_tokens,
                slots=spec.slots,
                warmup_prefill_tokens_per_s=prefill_rate,
                warmup_decode_tokens_per_s=decode_rate,
                placement=placement,
                gpu_fault=gpu_fault,
                draft=spec.draft.name if spec.draft is not None and drafter is not None else None,
                draft_fault=draft_fault,
            )
        )

        matchers = Matchers(partial(vocabulary_of, model), max_processes=spec.slots + _SPARE_MATCHERS, wake=wake)
        stack.callback(matchers.close)

        def new_draw(request: Submit) -> _FreeDraw | MatchedDraw:
            constraint = constraint_of(request, templates.caller)
            sampler = Sampler(model, completed(request.sampling, defaults), history_tokens=context.lane_tokens)
            if constraint is None:
                return _FreeDraw(sampler, context)
            selectors = constraint.calls.selectors if constraint.calls else {}
            matcher = matchers.start(request.job_id, constraint)
            return MatchedDraw(
                sampler, context, matcher, selectors, freely=partial(sampler.sample, context), spelling=model
            )

        run_lanes = Lanes(
            lanes=lanes, cells=context.tokens, cuts_anywhere=context.cuts_anywhere, kv_unified=spec.kv_unified
        )
        idle_tokens = context.tokens
        if spec.kv_unified and spec.prefix_cache_mb:
            idle_tokens //= _IDLE_PART_ON_GPU if gpu_layers(placement) else _IDLE_PART
        limits = Limits(
            slots=spec.slots,
            context_tokens=context.tokens,
            job_tokens=min(context.lane_tokens, model.trained_context_tokens or context.lane_tokens),
            batch_tokens=context.batch_tokens,
            outputs=outputs,
            idle_tokens=idle_tokens,
        )
        speculation = (
            Speculation(
                StepCosts(step_s=measured_s.get(1, 1 / decode_rate), token_s=1 / prefill_rate, measured_s=measured_s)
            )
            if spec.speculation and context.gives_back_latest
            else None
        )
        shelf = Shelf(
            most_bytes=spec.prefix_cache_mb * 2**20,
            cuts_anywhere=context.cuts_anywhere,
            free_bytes=host_free_bytes,
        )
        intake = Intake(
            reader=RequestReader(
                model,
                templates.plain,
                vocabulary_size=model.vocabulary_size,
                tool_template=templates.with_tools,
                marks=None if templates.thinker is None else templates.thinker.marks,
            ),
            cache=cache,
            lanes=run_lanes,
            new_draw=new_draw,
            limits=limits,
            thinker=templates.thinker,
            caller=templates.caller,
            speculation=speculation,
        )
        yield Decoder(
            intake=intake,
            cache=cache,
            lanes=run_lanes,
            shelf=shelf,
            limits=limits,
            clock=clock,
            work_clock=work_clock,
            emit=emit,
            prefill_tokens_per_s=prefill_rate,
            guessing=None if speculation is None else Guessing(speculation, drafter, clock=work_clock),
        )


def _companion(spec: ModelSpec) -> tuple[ModelSpec | None, str | None]:
    """(what to load as the draft model, why it is not loaded); None for either where it does not apply."""
    try:
        return draft_spec(spec), None
    except ModelError as error:
        return None, str(error)


def _embedder(
    model: Model,
    spec: ModelSpec,
    stack: ExitStack,
    *,
    emit: Callable[[Event], None],
    clock: Callable[[], float],
    began_at_s: float,
) -> Embedder:
    """Set up an embedding model and emit `Loaded`. A batch has room for the longest text, as none can be split."""
    text_tokens = min(spec.context_tokens, model.trained_context_tokens or spec.context_tokens)
    batch_tokens = max(spec.batch_tokens, text_tokens)
    whole = msgspec.structs.replace(spec, context_tokens=batch_tokens, batch_tokens=batch_tokens, kv_unified=True)
    context = Context(
        model,
        whole,
        lanes=_TEXTS_AT_ONCE,
        outputs=batch_tokens,
        threads=spec.threads or physical_cores(),
        embeds=True,
    )
    stack.callback(context.close)
    apply_adapters(model, context, spec.lora)
    placement, gpu_fault = where_it_is(spec)
    paced = None if spec.pace is None else PacedCache(context, spec.pace, clock=clock, sleep=time.sleep)
    with measured_alone(spec.measuring_lock, clock=clock, sleep=time.sleep):
        rate = warm_up_vectors(context if paced is None else paced, model, clock, most_tokens=text_tokens)
    emit(
        Loaded(
            facts=model.facts(supports_tools=False, supports_thinking=False, template_variables=None, sampling=None),
            load_s=clock() - began_at_s,
            context_tokens=text_tokens,
            slots=spec.slots,
            warmup_prefill_tokens_per_s=rate,
            placement=placement,
            gpu_fault=gpu_fault,
        )
    )
    return Embedder(
        reader=RequestReader(model, None, vocabulary_size=model.vocabulary_size),
        decode=context.decode if paced is None else paced.decode,
        cache=context,
        pooling=model.pooling,
        lanes=_TEXTS_AT_ONCE,
        text_tokens=text_tokens,
        batch_tokens=batch_tokens,
        clock=clock,
        emit=emit,
    )


def check_spec(spec: ModelSpec) -> None:
    """Raises `ModelError` for settings that cannot work with any model."""
    ranges = {
        "slots": (spec.slots, 1, MAX_SEQUENCES if spec.kv_unified else MAX_SEQUENCES - 1),
        "context_tokens": (spec.context_tokens, 1, _MAX_CONTEXT_TOKENS),
        "batch_tokens": (spec.batch_tokens, _MIN_BATCH_TOKENS, _MAX_CONTEXT_TOKENS),
        "threads": (1 if spec.threads is None else spec.threads, 1, _MAX_THREADS),
    }
    if spec.cache_type not in CACHE_TYPE_BYTES:
        raise ModelError(
            f"cache_type is {spec.cache_type!r}, but must be one of {', '.join(CACHE_TYPE_BYTES)}.",
            code="invalid_spec",
            remedy="Change it in the agent's configuration.",
        )
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise ModelError(
                f"{name} is {value}, but must be between {low} and {high}.",
                code="invalid_spec",
                remedy="Change it in the agent's configuration.",
            )


def physical_cores() -> int:
    """Cores this process may use, counting hyper-threads of one core once: more threads slow llama.cpp down."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


@dataclass(frozen=True)
class _Templates:
    """A model's chat templates. with_tools: for conversations with tools; the plain one where it is the same."""

    plain: ChatTemplate | None = None
    with_tools: ChatTemplate | None = None
    thinker: Thinker | None = None
    caller: Caller = field(default_factory=lambda: Caller(BARE, {}))

    @property
    def supports_tools(self) -> bool:
        return self.with_tools is not None and self.with_tools.shows_tools

    @property
    def variables(self) -> tuple[str, ...] | None:
        """What a client can set of either template; None where that is more than a report can tell."""
        names: set[str] = set().union(*(each.variables for each in (self.plain, self.with_tools) if each is not None))
        return tuple(sorted(names)) if len(names) <= MAX_TEMPLATE_VARIABLES else None


def _templates(model: Model, log: Callable[[str], None]) -> _Templates:
    source, source_with_tools = model.chat_template(), model.chat_template("tool_use")
    if source is None and source_with_tools is None:
        return _Templates()
    quotation = Quotation(model.control_texts)
    marks = marks_of(f"{source or ''}{source_with_tools or ''}", model.is_token)

    def made(source: str | None) -> ChatTemplate | None:
        if source is None:
            return None
        try:
            return ChatTemplate(source, bos=model.bos, eos=model.eos, quotation=quotation, marks=marks)
        except TemplateError as error:
            log(f"{error}\n")
            return None

    plain = made(source)
    with_tools = made(source_with_tools) if source_with_tools != source else plain
    thinker = None if marks is None else Thinker.of(marks, model.tokens_of)
    caller = Caller(BARE, {})
    if (for_tools := with_tools or plain) is not None:
        form = HARMONY if marks is not None and marks.is_harmony else for_tools.call_form
        caller = Caller.of(form, model.tokens_of, model.piece)
    return _Templates(plain or with_tools, for_tools, thinker, caller)


def vocabulary_of(model: Model) -> Vocabulary:
    """The texts of the model's tokens as its answers show them; none for those that end an answer or do not show."""
    tokens = range(model.vocabulary_size)
    ends = tuple(token for token in tokens if model.is_end(token))
    return Vocabulary(texts=tuple(b"" if model.is_end(token) else model.piece(token) for token in tokens), ends=ends)
