"""The engine's child against `llama_cpp.server` and against a bare decode loop, side by side.

    python -m benchmarks.engine --model FILE.gguf [--threads N] [--rounds N] [--tokens N]

All three have the model loaded all the time; within a round they take turns, so that a host's slow minutes hit all of
them. Figures are medians over rounds; ratios are made within a round first. Prefill of the short prompts is part of
every rate. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from contextlib import ExitStack

from benchmarks.engine_rivals import BareLoop, EngineChild, LlamaServer, Request, Rival, Stream
from moe2.agent.engine.protocol import ModelSpec

_CONTEXT_TOKENS = 4096
_SUBJECTS = ("sea", "desert", "forest", "moon", "river", "city", "mountain", "winter")
_FILLER = "The quick brown fox jumps over the lazy dog near the old stone bridge. "
_LONG_PROMPT_REPEATS = 90
_PREFIX_REPEATS = 31
"""About 15 tokens each: the shared prefix has about 500 tokens."""
_SHORT_DELAY_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    with ExitStack() as stack:
        size = {"threads": arguments.threads, "context_tokens": _CONTEXT_TOKENS}
        bare = BareLoop(arguments.model, **size)
        engine = EngineChild(
            ModelSpec(path=arguments.model, context_tokens=_CONTEXT_TOKENS, slots=8, threads=arguments.threads)
        )
        server = LlamaServer(arguments.model, **size)
        for rival in (bare, engine, server):
            stack.enter_context(rival)
        figures = measure(
            bare, engine, server, rounds=arguments.rounds, tokens=arguments.tokens, levels=arguments.concurrency
        )
        figures["engine_peak_rss_mb"] = round(engine.peak_rss_mb(), 1)
        figures["server_peak_rss_mb"] = round(server.peak_rss_mb(), 1)
    figures["threads"] = arguments.threads
    print(json.dumps(figures))


def measure(
    bare: BareLoop, engine: EngineChild, server: LlamaServer, *, rounds: int, tokens: int, levels: list[int]
) -> dict[str, float]:
    """All figures, by name."""
    seen: dict[str, list[float]] = defaultdict(list)
    for round_number in range(rounds):
        for level in levels:
            _throughput(bare, engine, server, seen, tokens=tokens, level=level, salt=f"{round_number} {level}")
        _behind_long(engine, server, seen, salt=f"{round_number}")
        _shared_prefix(engine, seen, salt=f"{round_number}")
    return {name: round(statistics.median(values), 4) for name, values in seen.items()}


def _throughput(
    bare: BareLoop,
    engine: EngineChild,
    server: LlamaServer,
    seen: dict[str, list[float]],
    *,
    tokens: int,
    level: int,
    salt: str,
) -> None:
    prompts = [f"({salt}) Once upon a time, by the {subject}, there was" for subject in _SUBJECTS[:level]]
    requests = [Request(prompt, tokens) for prompt in prompts]
    limit = bare.tokens_per_s(prompts, tokens)
    rates = {}
    for name, rival in (("engine", engine), ("server", server)):
        streams, seconds = _timed(rival, requests)
        rates[name] = sum(len(stream.token_at_s) for stream in streams) / seconds
        waits = sorted(stream.ttft_s for stream in streams)
        gaps = sorted(gap for stream in streams for gap in stream.gaps_s)
        seen[f"{name}_tokens_per_s_c{level}"].append(rates[name])
        seen[f"{name}_ttft_p50_s_c{level}"].append(_quantile(waits, 0.5))
        seen[f"{name}_ttft_p95_s_c{level}"].append(_quantile(waits, 0.95))
        seen[f"{name}_gap_p95_s_c{level}"].append(_quantile(gaps, 0.95))
    seen[f"bare_tokens_per_s_c{level}"].append(limit)
    seen[f"raw_ratio_c{level}"].append(rates["engine"] / limit)
    seen[f"speedup_c{level}"].append(rates["engine"] / rates["server"])
    print(
        f"concurrency {level}: bare {limit:.0f}, engine {rates['engine']:.0f}, server {rates['server']:.0f} tokens/s",
        flush=True,
    )


def _behind_long(engine: EngineChild, server: LlamaServer, seen: dict[str, list[float]], *, salt: str) -> None:
    """A short prompt that arrives while a long one is being read."""
    waits = {}
    for name, rival in (("engine", engine), ("server", server)):
        requests = [
            Request(f"{name} {salt}: " + _FILLER * _LONG_PROMPT_REPEATS, 2),
            Request(f"({salt}) The capital of France is", 2, delay_s=_SHORT_DELAY_S),
        ]
        short = rival.run(requests)[1]
        waits[name] = short.ttft_s
        seen[f"{name}_ttft_behind_long_s"].append(short.ttft_s)
    seen["ttft_behind_long_ratio"].append(waits["server"] / waits["engine"])
    print(f"behind a long prompt: engine {waits['engine']:.3f} s, server {waits['server']:.3f} s", flush=True)


def _shared_prefix(engine: EngineChild, seen: dict[str, list[float]], *, salt: str) -> None:
    """Time to first token with 500 tokens of prompt in the cache, against the same without."""
    prefix = f"Rules of house {salt}: " + _FILLER * _PREFIX_REPEATS
    cold = engine.run([Request(prefix + "Question: who? Answer:", 2)])[0].ttft_s
    warm = engine.run([Request(prefix + "Request: what? Reply:", 2)])[0].ttft_s
    seen["ttft_prefix_cold_s"].append(cold)
    seen["ttft_prefix_warm_s"].append(warm)
    seen["prefix_cached_tokens"].append(float(engine.cached_tokens[0]))
    seen["ttft_prefix_ratio"].append(warm / cold)
    print(f"prefix: cold {cold:.3f} s, warm {warm:.3f} s ({engine.cached_tokens[0]} tokens cached)", flush=True)


def _timed(rival: Rival, requests: list[Request]) -> tuple[list[Stream], float]:
    began_at_s = time.perf_counter()
    streams = rival.run(requests)
    return streams, time.perf_counter() - began_at_s


def _quantile(ordered: list[float], share: float) -> float:
    """Nearest rank of an ordered list; nan where it is empty."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    main()
