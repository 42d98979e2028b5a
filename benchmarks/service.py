"""The whole service beside llama.cpp's own server. Run as `python -m benchmarks.service --llama-server BINARY`.

Coordinator, agent and engine as installed, asked over HTTP with streams, against `llama-server` with the same file, the
same number of threads and the same prompts, in turns, so that only one of them works at a time: tokens per second of
1, 4 and 8 requests at once, and the time to the first token of one. The median of the rounds' ratios counts, as a
host's speed differs more between rounds than within one; fewer requests at once have more rounds, so that all figures
rest on as many answers. `llama-server` is built from the source that llama-cpp-python's sdist carries
(vendor/llama.cpp), so that both run the same llama.cpp:

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DLLAMA_CURL=OFF && cmake --build build -t llama-server

Neither guesses tokens; with `--guessing both` both do, ours as it does by itself and `llama-server` with the options of
`benchmarks.speculation`; with `--guessing ours` both are as they are when nobody sets anything about it.

A request may fill all of the context, which is what both do when nobody says anything about it; `llama-server`, whose
slots are set here, needs `--kv-unified` for that. With `--divided` each request has an eighth to itself on both sides:
`llama-server -np 8`, and `kv_unified = false` here.

The last line is one JSON object: `guessing`, `kv_unified`, `ratio_c1`, `ratio_c4`, `ratio_c8` (ours over theirs) and
`ttft_ratio_c1` (ours over theirs: below 1 is sooner).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import aiohttp
import uvloop

from benchmarks.http_load import EventStream, LoadError
from benchmarks.speculation import SERVER_OPTIONS
from examples.demo.setup import free_port

HOST = "127.0.0.1"
FIRST_PORT = 8480
START_S = 120.0
POLL_S = 0.1
AT_ONCE = (1, 4, 8)
SLOTS = max(AT_ONCE)
CONTEXT_TOKENS = 8192
SUBJECTS = ("harbour", "forest", "desert", "moon", "garden", "river", "street", "kitchen", "winter", "library")
_CONTENT = re.compile(rb'"content":\s*"[^"]')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')


class Answer(EventStream):
    """A streamed answer that notes when its first text came."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        self.began_s = perf_counter()
        self.first_s: float | None = None

    def data_received(self, data: bytes) -> None:
        if self.first_s is None and _CONTENT.search(data):
            self.first_s = perf_counter()
        super().data_received(data)


@dataclass(frozen=True)
class Round:
    """What some answers at once took. ttft_s: the mean time to their first text."""

    tokens_per_s: float
    ttft_s: float


def request_of(port: int, subject: str, n_tokens: int) -> bytes:
    """A whole HTTP/1.1 request, ready to write."""
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": f"Write a long story about a {subject}, with many details."}],
            "max_tokens": n_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask(port: int, subjects: Sequence[str], n_tokens: int) -> Round:
    """Ask for one story about each subject, all at once."""
    loop = asyncio.get_running_loop()
    requests = [request_of(port, subject, n_tokens) for subject in subjects]
    began_s = perf_counter()
    opened = [loop.create_connection(lambda each=each: Answer(each), HOST, port) for each in requests]  # type: ignore[misc]
    answers: list[Answer] = [answer for _, answer in await asyncio.gather(*opened)]
    texts = await asyncio.gather(*(answer.finished for answer in answers))
    took_s = perf_counter() - began_s
    tokens = 0
    for text in texts:
        counts = _COMPLETION_TOKENS.findall(text)
        if not counts:
            raise LoadError(f"An answer tells no usage: {text[-500:].decode(errors='replace')}")
        tokens += int(counts[-1])
    waits = [answer.first_s - answer.began_s for answer in answers if answer.first_s is not None]
    return Round(tokens / took_s, statistics.fmean(waits))


@contextmanager
def _running(argv: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def _until_it_answers(port: int) -> None:
    """Wait until whoever listens there has answered a prompt. Raises `LoadError` if it does not."""
    until_s = perf_counter() + START_S
    while perf_counter() < until_s:
        try:
            await ask(port, ["house"], 4)
        except (OSError, LoadError, aiohttp.ClientError):
            await asyncio.sleep(POLL_S)
        else:
            return
    raise LoadError(f"Port {port} gave no answer within {START_S:.0f} s; keep the logs with --logs FOLDER.")


@asynccontextmanager
async def service(model: Path, threads: int, root: Path, *, guesses: bool, kv_unified: bool) -> AsyncIterator[int]:
    """The whole service on this host; yields the port of its API. guesses: whether its engine guesses tokens.
    kv_unified: whether a request may fill all of the context."""
    api_port = free_port(FIRST_PORT)
    agents_port = free_port(api_port + 1)
    (root / "token").write_text(secrets.token_urlsafe(32))
    coordinator, agent = root / "coordinator.toml", root / "agent.toml"
    coordinator.write_text(
        f'[coordinator]\nstate_dir = "{root}/coordinator"\nsocket = "{root}/c"\n[api]\nhost = "{HOST}"\n'
        f'port = {api_port}\n[agents]\nhost = "{HOST}"\nport = {agents_port}\ntoken_file = "{root}/token"\n'
    )
    agent.write_text(
        f'[agent]\nstate_dir = "{root}/agent"\nsocket = "{root}/a"\n[coordinator]\nurl = "ws://{HOST}:{agents_port}"\n'
        f'token_file = "{root}/token"\n[measuring]\nenabled = false\n[[models]]\nname = "m"\npath = "{model}"\n'
        f"context_tokens = {CONTEXT_TOKENS}\nslots = {SLOTS}\nthreads = {threads}\n"
        f"kv_unified = {str(kv_unified).lower()}\nspeculation = {str(guesses).lower()}\n"
    )
    run = (sys.executable, "-m")
    with (
        _running([*run, "moe2.coordinator", "run", "--config", str(coordinator)], root / "coordinator.log"),
        _running([*run, "moe2.agent", "run", "--config", str(agent)], root / "agent.log"),
    ):
        await _until_it_answers(api_port)
        yield api_port


@asynccontextmanager
async def llama_server(
    binary: Path, model: Path, threads: int, root: Path, *, options: Sequence[str]
) -> AsyncIterator[int]:
    """llama.cpp's own server with further `options` of its command line; yields its port."""
    port = free_port(FIRST_PORT + 10)
    argv = [str(binary), "-m", str(model), "--host", HOST, "--port", str(port), "-c", str(CONTEXT_TOKENS), "-ngl", "0"]
    argv += ["-np", str(SLOTS), "-t", str(threads), "-tb", str(threads), "--no-webui", *options]
    with _running(argv, root / "llama-server.log"):
        await _until_it_answers(port)
        yield port


async def measure(arguments: argparse.Namespace) -> dict[str, float | str | bool]:
    """Ask both in turns; return the ratios, and who guessed tokens."""
    async with AsyncExitStack() as stack:
        root = arguments.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moe2-service-")))
        model, threads = arguments.model, arguments.threads
        guesses = arguments.guessing != "neither"
        options = SERVER_OPTIONS.split() if arguments.guessing == "both" else []
        if not arguments.divided:
            options.append("--kv-unified")
        own = service(model, threads, root, guesses=guesses, kv_unified=not arguments.divided)
        ours = await stack.enter_async_context(own)
        rival = llama_server(arguments.llama_server, model, threads, root, options=options)
        theirs = await stack.enter_async_context(rival)
        figures: dict[str, float] = {}
        for n_requests in arguments.at_once:
            rounds: dict[int, list[Round]] = {ours: [], theirs: []}
            for number in range(arguments.rounds * max(arguments.at_once) // n_requests):
                # Each round has prompts of its own, so that nobody finds them in a cache; each goes first in half.
                subjects = [f"{SUBJECTS[at % len(SUBJECTS)]} number {10 * number + at}" for at in range(n_requests)]
                for port in (ours, theirs) if number % 2 else (theirs, ours):
                    rounds[port].append(await ask(port, subjects, arguments.tokens))
            rates = {port: statistics.median(each.tokens_per_s for each in found) for port, found in rounds.items()}
            ttft = {port: statistics.median(each.ttft_s for each in found) for port, found in rounds.items()}
            pairs = list(zip(rounds[ours], rounds[theirs], strict=True))
            ratios = sorted(our.tokens_per_s / their.tokens_per_s for our, their in pairs)
            print(
                f"{n_requests} at once: {rates[ours]:.1f} tokens/s, llama-server {rates[theirs]:.1f}, "
                f"ratios {ratios[0]:.2f} to {ratios[-1]:.2f}; "
                f"first token after {1000 * ttft[ours]:.0f} ms, llama-server {1000 * ttft[theirs]:.0f} ms",
                flush=True,
            )
            figures[f"ratio_c{n_requests}"] = statistics.median(ratios)
            if n_requests == 1:
                figures["ttft_ratio_c1"] = statistics.median(our.ttft_s / their.ttft_s for our, their in pairs)
    return {
        "guessing": arguments.guessing,
        "kv_unified": not arguments.divided,
        **{name: round(value, 3) for name, value in figures.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="GGUF", help="the file that both serve")
    parser.add_argument("--llama-server", type=Path, required=True, metavar="BINARY", help="llama.cpp's own server")
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine (%(default)s)")
    parser.add_argument(
        "--guessing", choices=("neither", "ours", "both"), default="neither", help="who guesses tokens (%(default)s)"
    )
    parser.add_argument("--divided", action="store_true", help="each request has an eighth of the context to itself")
    parser.add_argument("--at-once", type=int, nargs="+", default=AT_ONCE, help="requests at once (%(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="length of each answer (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="those of most requests at once (%(default)s)")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="an existing folder to keep logs and state in")
    print(json.dumps(uvloop.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
