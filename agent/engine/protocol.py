"""The words between the daemon and an engine's child process.

Frames are a 4-byte big-endian length and a msgpack map with an `op` (see `moe2.common.link.wire`). Commands go to the
child's stdin, events come from its stdout; its stderr is llama.cpp's own log. One child serves one model, so a crash
takes one model's requests with it and nothing else.

Times are durations in seconds, measured by the child on its monotonic clock.
"""

from __future__ import annotations

import msgspec

from moe2.common.generation import Sampling
from moe2.common.link.messages import (
    CancelJob,
    ContinuationScore,
    EmbedJob,
    FollowJob,
    NextTokens,
    ScoreJob,
    Submit,
    TakeToken,
    Tokens,
    Vectors,
)
from moe2.common.placement import DeviceShare, GpuFault

MAX_SEQUENCES = 256
"""llama.cpp's own bound on sequences at once (LLAMA_MAX_SEQ)."""


class LoraSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter in a GGUF file, and how strongly it is applied."""

    path: str
    scale: float = 1.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The speed of a simulated host, at one request."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


class DraftSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A smaller model that guesses what a model will say.

    name: what it is served as. path: None where this host does not serve it now.
    """

    name: str
    path: str | None = None
    gpu_layers: int = 0
    lora: tuple[LoraSpec, ...] = ()


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to load.

    context_tokens: tokens of KV cache, of all slots together.
    slots: sequences decoded at once.
    kv_unified: slots share the cache; otherwise each has an equal part of it to itself.
    threads: None lets llama.cpp decide; 0 is refused by the configuration.
    gpu_layers: layers offloaded; -1 is all, 0 is none.
    flash_attention: None lets llama.cpp decide.
    cache_type: of keys and values: "f16", "q8_0" or "q4_0".
    prefix_cache_mb: MiB of the host's memory for prefixes that are not in the KV cache; 0 keeps them there alone.
    pace: what the model is slowed down to; None leaves it alone.
    sampling: what is drawn with where a request says nothing, before what the model's file says.
    speculation: tokens are guessed from the text and checked several at once, where that saves time.
    measuring_lock: a file that is locked while the model is measured after loading; None where others do not matter.
    draft: a smaller model that guesses, too, where that was measured to save time; None for none.
    require_gpu: a model that is not on the GPU as `gpu_layers` says is not served.
    """

    path: str
    context_tokens: int
    slots: int
    kv_unified: bool = True
    threads: int | None = None
    gpu_layers: int = 0
    batch_tokens: int = 512
    flash_attention: bool | None = None
    mlock: bool = False
    cache_type: str = "f16"
    lora: tuple[LoraSpec, ...] = ()
    prefix_cache_mb: int = 256
    pace: Pace | None = None
    sampling: Sampling = Sampling()
    measuring_lock: str | None = None
    speculation: bool = True
    draft: DraftSpec | None = None
    require_gpu: bool = False


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the GGUF says of itself, read after loading. Unknown is None.

    sampling: what is drawn with where a request says nothing: as configured, else as the file says, else as usual.
    vector_size: the length of an embedding model's vectors; None for a model that writes.
    template_variables: the variables of its chat template that a client can set.
    """

    architecture: str
    name: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    file_bytes: int
    licence: str | None = None
    trained_context_tokens: int | None = None
    vocabulary_size: int
    vocabulary_sha256: str
    has_chat_template: bool
    supports_tools: bool | None = None
    supports_thinking: bool | None = None
    supports_infill: bool | None = None
    template_variables: tuple[str, ...] | None = None
    sampling: Sampling | None = None
    vector_size: int | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="load"):
    spec: ModelSpec


class Shutdown(msgspec.Struct, frozen=True, tag_field="op", tag="shutdown"):
    """Finish nothing more, free the model, exit 0."""


Job = Submit | ScoreJob | FollowJob | EmbedJob
Command = Load | Job | TakeToken | CancelJob | Shutdown


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="loading"):
    """Progress of a load, 0..1."""

    progress: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="loaded"):
    """The model is ready.

    warmup_*: rates of a short fixed run after loading, so that a fresh expert is never without a measurement.
    draft: the name of the model that guesses; None where none does. draft_fault: why the one that is asked for does
    not.
    placement: which device holds what. gpu_fault: why it is not, or not all of it, on the host's GPU.
    """

    facts: ModelFacts
    load_s: float
    context_tokens: int
    slots: int
    warmup_prefill_tokens_per_s: float | None = None
    warmup_decode_tokens_per_s: float | None = None
    placement: tuple[DeviceShare, ...] = ()
    gpu_fault: GpuFault | None = None
    draft: str | None = None
    draft_fault: str | None = None


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="load_failed"):
    """The model cannot be served. `message` says what to do. The child exits after it.

    gpu_fault: where the GPU is why.
    """

    code: str
    message: str
    gpu_fault: GpuFault | None = None


class Started(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="started"):
    """The job holds a slot and its prompt has been tokenized; prefill begins.

    branch_tokens: what follows the prompt and goes through the model in batches as it does: continuations to score.
    unread_tokens: of the prompts of jobs that began before, when this one came. batch_wait_s: seconds that it then lay
    unread, as a batch was in progress.
    """

    job_id: str
    prompt_tokens: int
    cached_tokens: int = 0
    branch_tokens: int = 0
    unread_tokens: int = 0
    batch_wait_s: float = 0.0


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="finished"):
    """A job's end.

    reason: "stop" (end of text or a stop string), "length" or "cancelled". stop: the stop string that ended it.
    decoded_tokens: tokens that were really decoded, also where their text was held back by a stop string.
    reasoning_tokens: those of them that were reasoning, without its marks.
    drafted_tokens: guesses that went through the model; accepted_tokens: those of them that were right, and are among
    the decoded tokens; both are None where nothing is guessed. model_drafted_tokens, model_accepted_tokens: those of
    either that a draft model has guessed; None where it has guessed none. saved_s: by how much guesses have shortened
    `decode_s`, as estimated from what steps take.
    """

    job_id: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    decoded_tokens: int
    reasoning_tokens: int = 0
    wait_s: float
    prefill_s: float | None
    decode_s: float | None
    stop: str | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    model_drafted_tokens: int | None = None
    model_accepted_tokens: int | None = None
    saved_s: float = 0.0


class JobGuesses(msgspec.Struct, frozen=True, array_like=True):
    """Guesses of one job in one step: those that went through the model, and those of them that were right."""

    job_id: str
    drafted: int
    accepted: int


class Guessed(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="guessed"):
    """What went through the model beside the tokens of the `Tokens` that come next."""

    jobs: tuple[JobGuesses, ...]


class Scored(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="scored"):
    """The end of a `Score`: one entry per continuation, in the order asked.

    decoded_tokens: tokens of continuations that went through the model. decode_s: from the end of the prompt's prefill.
    """

    job_id: str
    scores: tuple[ContinuationScore, ...]
    prompt_tokens: int
    cached_tokens: int
    decoded_tokens: int
    wait_s: float
    prefill_s: float
    decode_s: float


class JobFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="job_failed"):
    """A job that could not run. `code` is one of `moe2.common.errors.JobErrorCode`."""

    job_id: str
    code: str
    message: str
    prompt_tokens: int | None = None
    decoded_tokens: int = 0


Event = (
    Loading | Loaded | LoadFailed | Started | Guessed | Tokens | Finished | Scored | NextTokens | Vectors | JobFailed
)
