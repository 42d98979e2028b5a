"""The short fixed run after a model was loaded, by which a fresh expert has a first measurement.

Models of one host that load together run it one after the other: at the same time, each would be measured against the
others, and predicted to be slower than it is.
"""

from __future__ import annotations

import fcntl
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome
from moe2.agent.engine.decoding.pacing import PacedCache
from moe2.agent.engine.llama.context import Context
from moe2.agent.engine.llama.model import Model, ModelError
from moe2.agent.engine.speculation.costs import SIZES

_WARMUP_PREFILL_TOKENS = 64
WARMUP_DECODE_TOKENS = 12
_MAX_MEASURED_TOKENS = 32
"""Of the batch sizes whose costs are learned, those up to this one are measured."""
_WARMUP_CONTEXT_TOKENS = 32
_WARMUP_ROUNDS = 3
_WARMUP_BATCHES_S = 3.0
_WARMUP_DECODE_S = 2.0
"""A slow host decodes fewer tokens to warm up."""
_MAX_ALONE_S = 60.0
"""So long a model waits for others to be measured; then a doubtful measurement is better than none."""
_LOOK_S = 0.05


@contextmanager
def measured_alone(
    lock_path: str | None, *, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[None]:
    """Holds the file's lock, which one process of this host can have at a time; None, or a file that cannot be made,
    holds nothing."""
    file = None
    if lock_path is not None:
        with suppress(OSError):
            file = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        until_s = clock() + _MAX_ALONE_S
        while file is not None and not _is_locked(file) and clock() < until_s:
            sleep(_LOOK_S)
        yield
    finally:
        if file is not None:
            os.close(file)


def _is_locked(file: int) -> bool:
    """Takes the lock if nobody has it. A file system without locks gives it to everybody."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def warm_up(
    cache: Context | PacedCache, model: Model, clock: Callable[[], float], *, most_tokens: int
) -> tuple[float, float]:
    """Measured (prefill, decode) rates in tokens/s of a short fixed run, of at most so many prompt tokens.

    Raises `ModelError` where it cannot decode.
    """
    count = min(_WARMUP_PREFILL_TOKENS, most_tokens)
    prompt = _warm_up_prompt(model, count)

    def decode(start: int, tokens: list[int]) -> float:
        began_at_s = clock()
        _decode_or_refuse(cache, [Chunk(0, start, tokens, len(tokens) - 1)])
        cache.logits(len(tokens) - 1)
        return clock() - began_at_s

    # The first pass brings the weights in from disk; it measures the disk, not the model.
    decode(0, prompt)
    cache.trim(0, 0)
    prefill_s = decode(0, prompt)
    enough_at_s = clock() + _WARMUP_DECODE_S
    steps_s: list[float] = []
    while len(steps_s) < WARMUP_DECODE_TOKENS and (not steps_s or clock() < enough_at_s):
        steps_s.append(decode(count + len(steps_s), [prompt[len(steps_s) % count]]))
    decode_s = statistics.median(steps_s)
    cache.trim(0, 0)
    return count / prefill_s, 1 / decode_s


def measured_batches(
    cache: Context | PacedCache, model: Model, clock: Callable[[], float], *, most_tokens: int
) -> dict[int, float]:
    """Measured seconds of a batch by its tokens, for some sizes of guesses, behind a short prompt.

    How much longer a batch takes than one token is a matter of llama.cpp's kernels: with some quantizations 8 tokens
    take less time than 6. A slow host, or one whose batch or context has less room than `most_tokens`, measures fewer
    sizes. Raises `ModelError` where it cannot decode.
    """
    sizes = [size for size in SIZES if size <= min(_MAX_MEASURED_TOKENS, most_tokens - _WARMUP_CONTEXT_TOKENS)]
    if not sizes:
        return {}
    prompt = _warm_up_prompt(model, _WARMUP_CONTEXT_TOKENS)
    _decode_or_refuse(cache, [Chunk(0, 0, prompt, len(prompt) - 1)])
    enough_at_s = clock() + _WARMUP_BATCHES_S
    least_s: dict[int, float] = {}
    for _ in range(_WARMUP_ROUNDS):
        for size in sizes:
            if clock() > enough_at_s:
                break
            began_at_s = clock()
            _decode_or_refuse(cache, [Chunk(0, len(prompt), _warm_up_prompt(model, size), 0)])
            cache.logits(size - 1)
            took_s = clock() - began_at_s
            cache.trim(0, len(prompt))
            least_s[size] = min(took_s, least_s.get(size, took_s))
    cache.trim(0, 0)
    return least_s


def warm_up_vectors(
    cache: Context | PacedCache, model: Model, clock: Callable[[], float], *, most_tokens: int
) -> float:
    """Measured tokens/s of a short fixed run of an embedding model. Raises `ModelError` where it yields no vectors."""
    count = min(_WARMUP_PREFILL_TOKENS, most_tokens)
    chunk = Chunk(0, 0, _warm_up_prompt(model, count), 0)
    # The first pass brings the weights in from disk; it measures the disk, not the model.
    for _ in range(2):
        began_at_s = clock()
        _decode_or_refuse(cache, [chunk])
        seconds = clock() - began_at_s
        cache.trim(0, 0)
    return count / seconds


def _warm_up_prompt(model: Model, count: int) -> list[int]:
    """Tokens that stand for a prompt; which ones does not matter to the speed."""
    return [(7919 * n) % model.vocabulary_size for n in range(count)]


def _decode_or_refuse(cache: Context | PacedCache, chunks: Sequence[Chunk]) -> None:
    if cache.decode(chunks) is not DecodeOutcome.DONE:
        raise ModelError(
            "The model is loaded, but llama.cpp cannot decode with it.",
            code="out_of_memory",
            remedy="Lower batch_tokens or context_tokens; llama.cpp's log names the cause.",
        )
