"""Parameters of other servers that clients write down although they change nothing here. PURE.

Some are accepted with the values that change nothing (`only`), others with any value, which the answer's header
`x-moe2-ignored` then names (`idle`).
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from moe2.common.generation import Sampling


def only(*values: Any, why: str = "") -> Meta:
    """Declares a parameter that is accepted only with these values, which change nothing.

    SDKs send some of them explicitly. why: what the error says beside that, in a sentence.
    """
    # With the types, as `typing` takes equal annotations for one, and 1 is equal to True.
    types = tuple(type(value) for value in values)
    return Meta(extra={"only": values, "types": types, "why": why}, extra_json_schema={"enum": [*values, None]})


def idle(*silent: Any) -> Meta:
    """Declares a parameter that is accepted and changes nothing, which the answer's header `x-moe2-ignored` says.

    silent: the values of which it need not be said, as they ask for what moe2 does anyway.
    """
    return Meta(extra={"idle": silent})


Idle: TypeAlias = Annotated[Any, idle()]


class VllmDefaults(Sampling, frozen=True, kw_only=True):
    """vLLM's parameters, by the values that its clients write down though they are its defaults."""

    add_generation_prompt: Annotated[Any, only(True)] = None
    ignore_eos: Annotated[Any, only(False)] = None
    include_stop_str_in_output: Annotated[Any, only(False)] = None
    length_penalty: Annotated[Any, only(1.0)] = None
    min_tokens: Annotated[Any, only(0)] = None
    skip_special_tokens: Annotated[Any, only(True)] = None
    spaces_between_special_tokens: Annotated[Any, only(True)] = None
    stop_token_ids: Annotated[Any, only([])] = None
    use_beam_search: Annotated[Any, only(False)] = None


class LlamaServerDefaults(VllmDefaults, frozen=True, kw_only=True):
    """llama-server's parameters, which its editors' plugins and its own page write down.

    Samplers that moe2 does not have are off by these values, and their further settings then change nothing; slots,
    times and figures beside an answer are each host's own affair.
    """

    dry_multiplier: Annotated[Any, only(0, 0.0)] = None
    dynatemp_range: Annotated[Any, only(0, 0.0)] = None
    mirostat: Annotated[Any, only(0)] = None
    n_probs: Annotated[Any, only(0)] = None
    typical_p: Annotated[Any, only(1, 1.0)] = None
    xtc_probability: Annotated[Any, only(0, 0.0)] = None
    dry_allowed_length: Idle = None
    dry_base: Idle = None
    dry_penalty_last_n: Idle = None
    dry_sequence_breakers: Idle = None
    dynatemp_exponent: Idle = None
    id_slot: Annotated[Any, idle(-1)] = None
    min_keep: Annotated[Any, idle(0)] = None
    mirostat_eta: Idle = None
    mirostat_tau: Idle = None
    n_discard: Idle = None
    n_indent: Annotated[Any, idle(0)] = None
    n_keep: Idle = None
    repeat_last_n: Idle = None
    return_progress: Annotated[Any, idle(False)] = None
    return_tokens: Annotated[Any, idle(False)] = None
    samplers: Idle = None
    t_max_predict_ms: Idle = None
    t_max_prompt_ms: Idle = None
    timings_per_token: Annotated[Any, idle(False)] = None
    xtc_threshold: Idle = None
