"""A fake expert: a real process that speaks the engine child's protocol, without a model.

It echoes the words of the prompt, one per token, as often as it takes to reach `max_tokens`, and before that once more
where the job wants the prompt echoed; given token ids are the words "t1", "t2" and so on. To a follower it proposes
the same. With `--prefers TEXT` it scores this continuation highest. A prompt with the word of `--dies-on` or
`--hangs-on` makes it do so, with all its other jobs. Run freely it is instant. With `--control SOCKET`
it asks a test for permission before each step, so that a test can hold it in any phase and let it crash there, without
a sleep: it sends lines such as "prefill JOB", "token JOB N", "score JOB" or "propose JOB N" and waits for one of "go",
"crash", "hang", "garbage" or, for a token, "shout" (it writes the word in capitals), followed by the line that it
answers.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import struct
import sys
import zlib
from math import log
from pathlib import Path

from moe2.agent.engine.protocol import (
    Command,
    Event,
    Finished,
    JobFailed,
    Load,
    Loaded,
    LoadFailed,
    ModelFacts,
    ModelSpec,
    Scored,
    Shutdown,
    Started,
)
from moe2.common.link.messages import (
    CancelJob,
    Candidate,
    ContinuationScore,
    EmbedJob,
    FollowJob,
    JobPieces,
    NextTokens,
    ScoreJob,
    Submit,
    TakeToken,
    TokenAlternative,
    TokenPiece,
    Tokens,
    Vectors,
)
from moe2.common.link.prompts import ChatPrompt, TextPrompt
from moe2.common.link.wire import Codec, FrameSplitter, length_prefixed
from moe2.common.placement import DeviceShare, GpuCause, GpuFault

DEFAULT_TOKENS = 16
_BARRED = GpuFault(
    cause=GpuCause.NO_PERMISSION, message="This user may not open /dev/nvmap.", remedy="Its group is video: join it."
)


class FakeExpert:
    """One fake model: every job is a task, cancelled by its `Cancel`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._events: Codec[Event] = Codec(Event)
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._takes: dict[str, asyncio.Queue[TakeToken]] = {}
        self._context_tokens = 0
        self._loading: asyncio.Task[None] | None = None
        self._control: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._control_turn = asyncio.Lock()

    async def run(self) -> None:
        if self._options.control:
            self._control = await asyncio.open_unix_connection(self._options.control)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb")
        )
        commands: Codec[Command] = Codec(Command)
        splitter = FrameSplitter()
        while data := await reader.read(65_536):
            for frame in splitter.feed(data):
                command = commands.decode(frame)
                if isinstance(command, Shutdown):
                    return
                self._obey(command)
                # A task that is cancelled before its first step never runs, and its job would never end.
                await asyncio.sleep(0)

    def _obey(self, command: Command) -> None:
        match command:
            case Load(spec=spec):
                self._loading = asyncio.create_task(self._load_when_allowed(spec))
            case Submit() as job:
                self._jobs[job.job_id] = asyncio.create_task(self._generate(job))
            case ScoreJob() as job:
                self._jobs[job.job_id] = asyncio.create_task(self._score(job))
            case EmbedJob() as job:
                self._jobs[job.job_id] = asyncio.create_task(self._embed(job))
            case FollowJob() as job:
                self._takes[job.job_id] = asyncio.Queue()
                self._jobs[job.job_id] = asyncio.create_task(self._follow(job))
            case TakeToken() as take:
                if takes := self._takes.get(take.job_id):
                    takes.put_nowait(take)
            case CancelJob(job_id=job_id):
                if task := self._jobs.get(job_id):
                    task.cancel()

    async def _load_when_allowed(self, spec: ModelSpec) -> None:
        if self._options.asks_to_load:
            await self._permission("load")
        self._load(spec.path, spec.context_tokens, spec.slots)

    def _load(self, path: str, context_tokens: int, slots: int) -> None:
        if not Path(path).exists():
            self._say(LoadFailed(code="model_not_found", message=f"There is no file {path}. Correct the model's path."))
            sys.exit(1)
        self._context_tokens = context_tokens
        self._say(
            Loaded(
                facts=ModelFacts(
                    architecture="fake",
                    file_bytes=1,
                    vocabulary_size=2,
                    vocabulary_sha256="0" * 64,
                    has_chat_template=not self._options.no_template,
                    supports_tools=not self._options.no_tools,
                    vector_size=self._options.vectors,
                ),
                load_s=0.0,
                context_tokens=context_tokens,
                slots=slots,
                warmup_prefill_tokens_per_s=self._options.prefill_tokens_per_s,
                warmup_decode_tokens_per_s=self._options.decode_tokens_per_s,
                placement=(DeviceShare(device="CPU", layers=3),),
                gpu_fault=_BARRED if self._options.gpu_is_barred else None,
            )
        )

    async def _generate(self, job: Submit) -> None:
        words = _words(job.prompt)
        if self._options.failing:
            # Begun, so that it is the expert's fault: what fails before that may be the request's.
            self._say(Started(job_id=job.job_id, prompt_tokens=len(words)))
            self._say(JobFailed(job_id=job.job_id, code="internal", message="It always fails."))
            return
        if len(words) >= self._context_tokens:
            text = f"The prompt has {len(words)} tokens, the context holds {self._context_tokens}."
            self._say(JobFailed(job_id=job.job_id, code="context_exceeded", message=text))
            return
        # What the answer begins with has been said already.
        said = len(job.prefix.split())
        decoded, reason, stop = 0, "cancelled", None
        try:
            self._say(Started(job_id=job.job_id, prompt_tokens=len(words)))
            self._fall_ill(words)
            await self._permission(f"prefill {job.job_id}")
            if job.echo:
                self._say(Tokens(jobs=(JobPieces(job_id=job.job_id, pieces=_echoed(words, job.logprobs)),)))
            # As a real engine does, it ends at its context and hears of others between two tokens.
            most = DEFAULT_TOKENS if job.max_tokens is None else job.max_tokens
            most = min(most, self._context_tokens - len(words))
            while decoded < most:
                await asyncio.sleep(self._options.seconds_per_token)
                told = await self._permission(f"token {job.job_id} {decoded}")
                word = words[(said + decoded) % len(words)]
                word = word.upper() if told == "shout" else word
                decoded += 1
                if word in job.stop:
                    reason, stop = "stop", word
                    break
                piece = TokenPiece(word + " ")
                if job.logprobs is not None:
                    others = tuple(TokenAlternative(f"other{i}", -2.0 - i) for i in range(job.logprobs))
                    piece = TokenPiece(word + " ", -0.5, others)
                self._say(Tokens(jobs=(JobPieces(job_id=job.job_id, pieces=(piece,)),)))
            else:
                reason = "stop" if job.max_tokens is None else "length"
        except asyncio.CancelledError:
            pass
        self._finished(job.job_id, reason, len(words), decoded, stop=stop)

    async def _score(self, job: ScoreJob) -> None:
        words = _words(job.prompt)
        self._say(Started(job_id=job.job_id, prompt_tokens=len(words)))
        try:
            await self._permission(f"score {job.job_id}")
        except asyncio.CancelledError:
            self._finished(job.job_id, "cancelled", len(words), 0)
            return
        self._jobs.pop(job.job_id, None)
        decoded = sum(len(each.split()) for each in job.continuations)
        self._say(
            Scored(
                job_id=job.job_id,
                scores=tuple(self._likelihood(each) for each in job.continuations),
                prompt_tokens=len(words),
                cached_tokens=0,
                decoded_tokens=decoded,
                wait_s=0.0,
                prefill_s=len(words) / self._options.prefill_tokens_per_s,
                decode_s=decoded / self._options.prefill_tokens_per_s,
            )
        )

    async def _embed(self, job: EmbedJob) -> None:
        texts = [text.text.split() or list(map(str, text.tokens)) for text in job.texts]
        prompt_tokens = sum(map(len, texts))
        if max(map(len, texts)) > self._context_tokens:
            text = f"A text has more than {self._context_tokens} tokens."
            self._say(JobFailed(job_id=job.job_id, code="context_exceeded", message=text))
            return
        self._say(Started(job_id=job.job_id, prompt_tokens=prompt_tokens))
        reason = "cancelled"
        try:
            for number, words in enumerate(texts):
                await self._permission(f"embed {job.job_id} {number}")
                self._say(Vectors(job_id=job.job_id, vectors=(vector_of(words, self._options.vectors),)))
            reason = "stop"
        except asyncio.CancelledError:
            pass
        self._finished(job.job_id, reason, prompt_tokens, 0)

    def _likelihood(self, continuation: str) -> ContinuationScore:
        """e^-1 per word of the preferred one, e^-2 of the others."""
        tokens = max(1, len(continuation.split()))
        rate = 1.0 if continuation.strip() == self._options.prefers else 2.0
        return ContinuationScore(-rate * tokens, tokens, len(continuation.encode()))

    async def _follow(self, job: FollowJob) -> None:
        words, takes, step, reason = _words(job.prompt), self._takes[job.job_id], 0, "cancelled"
        most = DEFAULT_TOKENS if job.max_tokens is None else job.max_tokens
        try:
            self._say(Started(job_id=job.job_id, prompt_tokens=len(words)))
            while True:
                await self._permission(f"propose {job.job_id} {step}")
                self._say(NextTokens(job_id=job.job_id, step=step, candidates=_candidates(words, step)))
                take = await takes.get()
                if take.token is None:
                    reason = "stop"
                    break
                step += 1
                if step == most:
                    reason = "length"
                    break
        except asyncio.CancelledError:
            pass
        del self._takes[job.job_id]
        self._finished(job.job_id, reason, len(words), step)

    def _finished(
        self, job_id: str, reason: str, prompt_tokens: int, decoded_tokens: int, *, stop: str | None = None
    ) -> None:
        self._jobs.pop(job_id, None)
        self._say(
            Finished(
                job_id=job_id,
                reason=reason,
                prompt_tokens=prompt_tokens,
                cached_tokens=0,
                decoded_tokens=decoded_tokens,
                wait_s=0.0,
                prefill_s=prompt_tokens / self._options.prefill_tokens_per_s,
                decode_s=decoded_tokens / self._options.decode_tokens_per_s,
                stop=stop,
                drafted_tokens=decoded_tokens if self._options.guesses else None,
                accepted_tokens=decoded_tokens // 2 if self._options.guesses else None,
            )
        )

    async def _permission(self, phase: str) -> str:
        """Ask the test whether and how to go on; without a control socket, go on."""
        if self._control is None:
            return "go"
        reader, writer = self._control
        async with self._control_turn:
            writer.write(f"{phase}\n".encode())
            answer, asked = "", None
            # An answer to a step that was cancelled meanwhile is for nobody.
            while asked != phase and (line := await reader.readline()):
                answer, _, asked = line.decode().strip().partition(" ")
        match answer:
            case "crash":
                os.abort()
            case "hang":
                await asyncio.Event().wait()
            case "garbage":
                os.write(1, b"\xff" * 16)
        return answer

    def _fall_ill(self, words: list[str]) -> None:
        """Die, or stop answering anybody, of a prompt that has this effect."""
        if self._options.dies_on in words:
            os.abort()
        if self._options.hangs_on in words:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _say(self, event: Event) -> None:
        os.write(1, length_prefixed(self._events.encode(event)))


def vector_of(words: list[str], size: int) -> bytes:
    """A vector of length 1 that depends on the words alone: how often each of them falls into each place."""
    counts = [1.0] * size
    for word in words:
        counts[zlib.crc32(word.encode()) % size] += 10.0
    length = math.sqrt(sum(count * count for count in counts))
    return struct.pack(f"<{size}f", *(count / length for count in counts))


def _words(prompt: ChatPrompt | TextPrompt) -> list[str]:
    if isinstance(prompt, TextPrompt) and prompt.tokens:
        return [f"t{token}" for token in prompt.tokens]
    text = prompt.text if isinstance(prompt, TextPrompt) else prompt.messages[-1].content
    return text.split() or ["nothing"]


def _echoed(words: list[str], logprobs: int | None) -> tuple[TokenPiece, ...]:
    """The prompt's words as pieces; the first one has nothing before it that it could be likely after."""
    if logprobs is None:
        return tuple(TokenPiece(f"{word} ") for word in words)
    others = tuple(TokenAlternative(f"other{i}", -2.0 - i) for i in range(logprobs))
    return (TokenPiece(f"{words[0]} "), *(TokenPiece(f"{word} ", -0.25, others) for word in words[1:]))


def _candidates(words: list[str], step: int) -> tuple[Candidate, ...]:
    """The prompt's word for this place, and the end: the more likely one first. Token 0 is the end."""
    place = step % len(words)
    likely, unlikely = log(0.75), log(0.125)
    piece = f"{words[place]} ".encode()
    if step < DEFAULT_TOKENS:
        return Candidate(place + 1, likely, piece, False), Candidate(0, unlikely, b"", True)
    return Candidate(0, likely, b"", True), Candidate(place + 1, unlikely, piece, False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control")
    parser.add_argument("--prefill-tokens-per-s", type=float, default=1000.0)
    parser.add_argument("--decode-tokens-per-s", type=float, default=100.0)
    parser.add_argument("--no-tools", action="store_true", help="have a template without tools")
    parser.add_argument("--no-template", action="store_true", help="be a base model, without a chat template")
    parser.add_argument("--asks-to-load", action="store_true", help='ask for permission for the step "load", too')
    parser.add_argument("--vectors", type=int, help="be an embedding model, with vectors of this length")
    parser.add_argument("--failing", action="store_true", help="fail every job at once")
    parser.add_argument("--seconds-per-token", type=float, default=0.0)
    parser.add_argument("--gpu-is-barred", action="store_true", help="be on the processor because /dev/nvmap is denied")
    parser.add_argument("--guesses", action="store_true", help="say that every second token was guessed right")
    parser.add_argument("--dies-on", metavar="WORD")
    parser.add_argument("--hangs-on", metavar="WORD")
    parser.add_argument("--prefers", metavar="TEXT", help="the continuation that it scores highest")
    asyncio.run(FakeExpert(parser.parse_args()).run())


if __name__ == "__main__":
    main()
