"""The words between the daemon and an engine's child process.

Frames are a 4-byte big-endian length and a msgpack map with an `op` (see `moe2.common.wire`). Commands go to the
child's stdin, events come from its stdout; its stderr is llama.cpp's own log. One child serves one model, so a crash
takes one model's requests with it and nothing else.

Times are durations in seconds, measured by the child on its monotonic clock.
"""

from __future__ import annotations

import msgspec

from moe2.common.messages import (
    Candidate,
    ChatPrompt,
    ContinuationScore,
    GrammarSyntax,
    Sampling,
    TextPrompt,
    TokenPiece,
)


class LoraSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter in a GGUF file, and how strongly it is applied."""

    path: str
    scale: float = 1.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The speed of a simulated host, at one request."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to load.

    context_tokens: tokens of KV cache shared by all slots.
    slots: sequences decoded at once.
    threads: None lets llama.cpp decide; 0 is refused by the configuration.
    gpu_layers: layers offloaded; -1 is all, 0 is none.
    cache_type: of keys and values: "f16", "q8_0" or "q4_0".
    prefix_cache_mb: MiB of the host's memory for prefixes that are not in the KV cache; 0 keeps them there alone.
    pace: what the model is slowed down to; None leaves it alone.
    """

    path: str
    context_tokens: int
    slots: int
    threads: int | None = None
    gpu_layers: int = 0
    batch_tokens: int = 512
    flash_attention: bool = False
    mlock: bool = False
    cache_type: str = "f16"
    lora: tuple[LoraSpec, ...] = ()
    prefix_cache_mb: int = 256
    pace: Pace | None = None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the GGUF says of itself, read after loading. Unknown is None."""

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


class Load(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="load"):
    spec: ModelSpec


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="generate"):
    """Decode a continuation. `max_tokens` None means until the context is full.

    prefix: how the answer begins; it is decoded like the prompt, and not reported again.
    logprobs: None for none, otherwise how many alternatives to report beside each token (0..20).
    grammar: what the answer follows, in the form that grammar_syntax names; json_schema: the same from a JSON schema as
    JSON text ("{}" is any object).
    forced_tools: names of the prompt's tools; the answer is one call of one of them. At most one of the three.
    """

    job_id: str
    prompt: ChatPrompt | TextPrompt
    sampling: Sampling
    prefix: str = ""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: str | None = None
    grammar_syntax: GrammarSyntax = "gbnf"
    json_schema: str | None = None
    forced_tools: tuple[str, ...] = ()


class Score(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="score"):
    """How likely is each continuation after the prompt? The prompt is decoded once; answered with `Scored`."""

    job_id: str
    prompt: ChatPrompt | TextPrompt
    continuations: tuple[str, ...]


class Follow(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="follow"):
    """What comes next? Answered with `Proposed` after the prompt and after each `Take`, and at last with `Finished`.

    The job holds its slot while it waits for what is taken.
    top_p, most: only the most likely tokens that make up this probability are reported, and never more than `most`.
    max_tokens: the job ends after so many taken tokens.
    """

    job_id: str
    prompt: ChatPrompt | TextPrompt
    top_p: float = 1.0
    most: int = 256
    max_tokens: int | None = None


class Take(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="take"):
    """The answer's token number `step`, from 0, to a job that follows. None: it is complete."""

    job_id: str
    step: int
    token: int | None = None


class Embed(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="embed"):
    """A vector for a text, from the model's last layer; answered with `Embedded`."""

    job_id: str
    prompt: ChatPrompt | TextPrompt


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="cancel"):
    """Stop a job of any kind before its next token. It is answered with a `Finished` whose reason is `cancelled`."""

    job_id: str


class Shutdown(msgspec.Struct, frozen=True, tag_field="op", tag="shutdown"):
    """Finish nothing more, free the model, exit 0."""


Job = Generate | Score | Follow | Embed
Command = Load | Job | Take | Cancel | Shutdown


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="loading"):
    """Progress of a load, 0..1."""

    progress: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="loaded"):
    """The model is ready.

    warmup_*: rates of a short fixed run after loading, so that a fresh expert is never without a measurement.
    """

    facts: ModelFacts
    load_s: float
    context_tokens: int
    slots: int
    warmup_prefill_tokens_per_s: float | None = None
    warmup_decode_tokens_per_s: float | None = None


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="load_failed"):
    """The model cannot be served. `message` says what to do. The child exits after it."""

    code: str
    message: str


class Started(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="started"):
    """The job holds a slot and its prompt has been tokenized; prefill begins.

    branch_tokens: what follows the prompt and goes through the model in batches as it does: continuations to score.
    """

    job_id: str
    prompt_tokens: int
    cached_tokens: int = 0
    branch_tokens: int = 0


class JobTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What one decoding step yielded for one job."""

    job_id: str
    pieces: tuple[TokenPiece, ...]


class Decoded(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="decoded"):
    """The tokens of one decoding step, all jobs in one frame."""

    jobs: tuple[JobTokens, ...]


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="finished"):
    """A job's end.

    reason: "stop" (end of text or a stop string), "length" or "cancelled".
    decoded_tokens: tokens that were really decoded, also where their text was held back by a stop string.
    """

    job_id: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    decoded_tokens: int
    wait_s: float
    prefill_s: float | None
    decode_s: float | None


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


class Proposed(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="proposed"):
    """The most likely tokens of the answer's place `step`, best first; what they lack to 1 lies on the others."""

    job_id: str
    step: int
    candidates: tuple[Candidate, ...]


class Embedded(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="embedded"):
    """The end of an `Embed`: a vector of length 1, pooled over the tokens as the GGUF asks, else their mean."""

    job_id: str
    embedding: tuple[float, ...]
    prompt_tokens: int
    wait_s: float
    prefill_s: float


class JobFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="job_failed"):
    """A job that could not run. `code` is one of `moe2.common.errors.JobErrorCode`."""

    job_id: str
    code: str
    message: str
    prompt_tokens: int | None = None
    decoded_tokens: int = 0


Event = Loading | Loaded | LoadFailed | Started | Decoded | Finished | Scored | Proposed | Embedded | JobFailed
