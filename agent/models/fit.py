"""Whether a model that is not here yet can be: known to llama.cpp, room on the disk, room in memory. PURE."""

from __future__ import annotations

from moe2.agent.engine.llama.memory import (
    Capacity,
    Need,
    Shortage,
    cache_bytes,
    least_cells,
    offloaded_part,
    shortage,
)
from moe2.common.errors import Moe2Error
from moe2.common.gguf import GgufHeader
from moe2.common.terminal.figures import size

HEADROOM_BYTES = 1 << 28
"""What has to stay free on the disk beside a model: 256 MiB."""


class FitError(Moe2Error):
    """A model that this host cannot take."""


def check_architecture(header: GgufHeader, name: str, capacity: Capacity) -> None:
    """Raises `FitError` for a model that this host's llama.cpp does not know."""
    if header.architecture is None:
        raise FitError(f"{name} does not say what architecture it has.", remedy="Choose a model in GGUF format.")
    if not capacity.knows:
        raise FitError(
            f"{name} has the architecture {header.architecture!r}, which this host's llama.cpp does not know.",
            remedy="Install a newer llama-cpp-python, or use another model.",
        )


def check_limit(name: str, n_bytes: int, *, held_bytes: int, max_bytes: int | None) -> None:
    """Raises `FitError` where the folder may not hold so many further bytes. max_bytes: None for no limit."""
    if max_bytes is not None and held_bytes + n_bytes > max_bytes:
        raise FitError(
            f"{name} needs {size(n_bytes)}; with the models that are there that is more than models_from.max_bytes, "
            f"{size(max_bytes)}.",
            remedy="Remove models, or raise models_from.max_bytes.",
        )


def check_space(name: str, n_bytes: int, *, free_bytes: int, folder: str) -> None:
    """Raises `FitError` where the disk has no room for so many further bytes and the headroom."""
    if n_bytes + HEADROOM_BYTES > free_bytes:
        raise FitError(
            f"{name} needs {size(n_bytes)} and {size(HEADROOM_BYTES)} of headroom in {folder}, where "
            f"{size(free_bytes)} are free.",
            remedy="Remove what is not needed (`moe2-agent models`, `moe2-agent remove`), or set models_from.folder.",
        )


def memory_shortage(
    header: GgufHeader,
    file_bytes: int,
    capacity: Capacity,
    *,
    context_tokens: int,
    slots: int = 1,
    kv_unified: bool = True,
    batch_tokens: int = 512,
    cache_type: str = "f16",
    gpu_layers: int = 0,
) -> Shortage | None:
    """What memory lacks for the model with so much context; None where there is enough, or nobody knows."""
    cells = least_cells(
        header.text,
        context_tokens=context_tokens,
        slots=slots,
        batch_tokens=batch_tokens,
        kv_unified=kv_unified,
    )
    need = Need(
        weights_bytes=file_bytes,
        cache_bytes=cache_bytes(header.text, cells, cache_type),
        offloaded=offloaded_part(header.text, gpu_layers) if capacity.device_free_bytes is not None else 0.0,
    )
    return shortage(need, host_free_bytes=capacity.host_free_bytes, device_free_bytes=capacity.device_free_bytes)


def what_would_fit(missing: Shortage, context_tokens: int) -> str:
    """What to do about a shortage of memory."""
    if missing.fitting is None:
        return "Use a smaller model or quantization, or free memory."
    return (
        f"With at most {int(missing.fitting * context_tokens)} tokens of context it would fit; q8_0 as cache_type "
        "halves what the context takes, q4_0 takes about a quarter."
    )
