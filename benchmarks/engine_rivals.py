"""What `benchmarks.engine` measures against each other: our child, `llama_cpp.server`, and a bare decode loop.

Each is a process of its own that stays loaded for the whole run; only one works at a time.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from moe2.agent.engine.protocol import Command, Event, Finished, JobFailed, Load, Loaded, LoadFailed, ModelSpec, Started
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit, Tokens
from moe2.common.link.prompts import TextPrompt
from moe2.common.link.wire import Codec, FrameSplitter, length_prefixed

_PATIENCE_S = 120.0


@dataclass(slots=True)
class Request:
    """One prompt to answer greedily, `delay_s` after the start."""

    prompt: str
    max_tokens: int
    delay_s: float = 0.0


@dataclass(slots=True)
class Stream:
    """When a request was sent and when each of its tokens came, on this process's clock."""

    sent_at_s: float
    token_at_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.token_at_s[0] - self.sent_at_s

    @property
    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.token_at_s, self.token_at_s[1:], strict=False)]


class Rival:
    """A process that answers requests."""

    process: subprocess.Popen[bytes]

    def run(self, requests: list[Request]) -> list[Stream]:
        """All requests at once; returns when all are answered."""
        raise NotImplementedError

    def peak_rss_mb(self) -> float:
        """The process's highest resident memory so far."""
        with open(f"/proc/{self.process.pid}/status") as status:
            (line,) = [line for line in status if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024

    def __enter__(self) -> Rival:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()


class EngineChild(Rival):
    """Our child, spoken to as the daemon speaks to it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moe2.agent.engine.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._commands: Codec[Command] = Codec(Command)
        self._events: Codec[Event] = Codec(Event)
        self._splitter = FrameSplitter()
        self._next_id = 0
        self.cached_tokens: list[int] = []
        self.send(Load(spec=spec))
        while True:
            for event in self.receive(_PATIENCE_S):
                if isinstance(event, Loaded):
                    if event.draft_fault is not None:
                        raise RuntimeError(event.draft_fault)
                    return
                if isinstance(event, LoadFailed):
                    raise RuntimeError(event.message)

    def new_job_id(self) -> str:
        """A name for the next request."""
        self._next_id += 1
        return f"job{self._next_id}"

    def run(self, requests: list[Request]) -> list[Stream]:
        began_at_s = time.perf_counter()
        waiting = sorted(requests, key=lambda request: request.delay_s)
        streams: dict[str, Stream] = {}
        open_jobs: set[str] = set()
        self.cached_tokens = []
        while waiting or open_jobs:
            now_s = time.perf_counter() - began_at_s
            while waiting and waiting[0].delay_s <= now_s:
                request = waiting.pop(0)
                job_id = self.new_job_id()
                streams[job_id] = Stream(time.perf_counter())
                open_jobs.add(job_id)
                self.send(
                    Submit(
                        request_id="r",
                        model="m",
                        job_id=job_id,
                        prompt=TextPrompt(text=request.prompt),
                        sampling=Sampling(temperature=0.0),
                        max_tokens=request.max_tokens,
                    )
                )
            timeout_s = max(0.0, waiting[0].delay_s - now_s) if waiting else _PATIENCE_S
            for event in self.receive(timeout_s):
                at_s = time.perf_counter()
                if isinstance(event, Tokens):
                    for job in event.jobs:
                        streams[job.job_id].token_at_s += [at_s] * len(job.pieces)
                elif isinstance(event, Finished):
                    open_jobs.discard(event.job_id)
                elif isinstance(event, Started):
                    self.cached_tokens.append(event.cached_tokens)
                elif isinstance(event, JobFailed):
                    raise RuntimeError(event.message)
        return list(streams.values())

    def send(self, command: Command) -> None:
        """Say something to the child."""
        assert self.process.stdin is not None
        self.process.stdin.write(length_prefixed(self._commands.encode(command)))
        self.process.stdin.flush()

    def receive(self, timeout_s: float) -> list[Event]:
        """What the child says next; nothing if it says nothing for so long. Raises `RuntimeError` when it is gone."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            return []
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            raise RuntimeError("The engine's child is gone.")
        return [self._events.decode(frame) for frame in self._splitter.feed(data)]


class LlamaServer(Rival):
    """llama-cpp-python's own OpenAI server, over HTTP, one thread per request."""

    def __init__(self, model: str, *, threads: int, context_tokens: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        settings = {
            "model": model,
            "port": self._port,
            "n_ctx": context_tokens,
            "n_threads": threads,
            "n_threads_batch": threads,
            # As shipped, a new request cuts off the one under way; users who want answers turn that off.
            "interrupt_requests": False,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server"]
            + [part for name, value in settings.items() for part in (f"--{name}", str(value))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up_at_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.run([Request("Hello", 1)])
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > give_up_at_s:
                    raise RuntimeError("llama_cpp.server does not come up; is llama-cpp-python[server] in?") from None
                time.sleep(0.2)

    def run(self, requests: list[Request]) -> list[Stream]:
        streams = [Stream(0.0) for _ in requests]
        errors: list[BaseException] = []
        threads = [
            threading.Thread(target=self._stream, args=(request, stream, errors))
            for request, stream in zip(requests, streams, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return streams

    def _stream(self, request: Request, stream: Stream, errors: list[BaseException]) -> None:
        body = {"prompt": request.prompt, "max_tokens": request.max_tokens, "temperature": 0.0, "stream": True}
        time.sleep(request.delay_s)
        try:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)) as link:
                stream.sent_at_s = time.perf_counter()
                link.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                for line in link.getresponse():
                    if line.startswith(b"data: {"):
                        choice = json.loads(line[6:])["choices"][0]
                        if choice["text"]:
                            stream.token_at_s.append(time.perf_counter())
        except (OSError, http.client.HTTPException) as error:
            errors.append(error)


class BareLoop(Rival):
    """`llama_decode` and an argmax in a loop, nothing else: what this host can do at most."""

    def __init__(self, model: str, *, threads: int, context_tokens: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, model, str(threads), str(context_tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def tokens_per_s(self, prompts: list[str], tokens: int) -> float:
        """Aggregate rate of answering these prompts together, prefill included."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("The bare loop is gone.")
        return float(line)


def _serve_bare_loop(model_path: str, threads: int, context_tokens: int) -> None:
    """The bare loop's process: one JSON line in, one rate out."""
    import ctypes

    import numpy as np
    from llama_cpp import llama_cpp as llama

    model = llama.llama_model_load_from_file(model_path.encode(), llama.llama_model_default_params())
    vocabulary = llama.llama_model_get_vocab(model)
    size = llama.llama_vocab_n_tokens(vocabulary)
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = context_tokens
    parameters.n_batch = parameters.n_ubatch = 512
    parameters.n_seq_max = 16
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.kv_unified = True
    context = llama.llama_init_from_model(model, parameters)
    batch = llama.llama_batch_init(512, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> None:
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at] = token
            batch.pos[at] = position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = wanted
        batch.n_tokens = len(rows)
        if llama.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def best(at: int) -> int:
        return int(np.argmax(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, at), (size,))))

    for line in sys.stdin:
        order = json.loads(line)
        prompts = []
        for text in order["prompts"]:
            tokens = (ctypes.c_int32 * 512)()
            count = llama.llama_tokenize(vocabulary, text.encode(), len(text.encode()), tokens, 512, True, True)
            prompts.append(list(tokens[:count]))
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        began_at_s = time.perf_counter()
        rows, ends = [], []
        for sequence, prompt in enumerate(prompts):
            rows += [(token, at, sequence, at == len(prompt) - 1) for at, token in enumerate(prompt)]
            ends.append(len(rows) - 1)
        decode(rows)
        current = [best(at) for at in ends]
        for step in range(order["tokens"] - 1):
            decode([(token, len(prompts[at]) + step, at, True) for at, token in enumerate(current)])
            current = [best(at) for at in range(len(current))]
        print(len(prompts) * order["tokens"] / (time.perf_counter() - began_at_s), flush=True)


if __name__ == "__main__":
    _serve_bare_loop(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
