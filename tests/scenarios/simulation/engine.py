"""A simulated engine child: the engine protocol's words at the engine protocol's moments, and the joules it burns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe2.agent.engine import protocol
from moe2.common.link.messages import CancelJob, JobPieces, Submit, TokenPiece, Tokens
from moe2.common.link.prompts import ChatPrompt
from tests.scenarios.simulation.world import World

TOKENS_PER_WORD = 4
"""The engine speaks once for so many tokens, to keep the number of events down."""
PREFILL_J, TOKEN_J = 0.5, 0.125
LOAD_S, LOAD_TIMEOUT_S = 2.0, 10.0


@dataclass
class _Running:
    job: Submit
    prompt_tokens: int
    decoded: int = 0
    started: bool = False


class SimEngine:
    """One child. on_event: what it says. on_exit: it died.

    joules: burnt per job, also by those that never end.
    """

    def __init__(
        self,
        world: World,
        *,
        token_s: float,
        slots: int,
        on_event: Callable[[protocol.Event], None],
        on_exit: Callable[[str], None],
    ) -> None:
        self._world = world
        self.token_s = token_s
        self._slots = slots
        self._on_event = on_event
        self._on_exit = on_exit
        self._running: dict[str, _Running] = {}
        self._life = 0
        """Grows when the child dies: what the dead one had in mind does not happen."""
        self.hung = False
        self._is_loaded = False
        self.joules: dict[str, float] = {}

    def start(self) -> None:
        """Load the model."""
        self._life += 1
        self.hung = self._is_loaded = False
        self._later(LOAD_S, self._loaded)
        self._world.later(LOAD_TIMEOUT_S, self._load_timed_out, self._life)

    def command(self, command: protocol.Command) -> None:
        """A dead child reads nothing."""
        if not self._is_loaded:
            return
        match command:
            case Submit():
                running = _Running(command, prompt_tokens=_words(command))
                self._running[command.job_id] = running
                self._later(self.token_s * running.prompt_tokens / 10, self._prefilled, running)
            case CancelJob(job_id=job_id) if job_id in self._running:
                self._later(self.token_s, self._finish, self._running[job_id], "cancelled")

    def die(self, reason: str) -> None:
        """All its jobs are gone with it."""
        self.end()
        self._on_exit(reason)

    def end(self) -> None:
        """Without a word."""
        self._life += 1
        self._is_loaded = False
        self._running.clear()

    def _later(self, delay_s: float, act: Callable[..., None], *args: object) -> None:
        self._world.later(delay_s, self._if_alive, self._life, act, args)

    def _if_alive(self, life: int, act: Callable[..., None], args: tuple[object, ...]) -> None:
        if life == self._life and not self.hung:
            act(*args)

    def _load_timed_out(self, life: int) -> None:
        if life == self._life and not self._is_loaded:
            self.die("no progress in loading")

    def _loaded(self) -> None:
        self._is_loaded = True
        facts = protocol.ModelFacts(
            architecture="fake", file_bytes=1, vocabulary_size=2, vocabulary_sha256="0" * 64, has_chat_template=True
        )
        self._on_event(
            protocol.Loaded(
                facts=facts,
                load_s=LOAD_S,
                context_tokens=4096,
                slots=self._slots,
                warmup_prefill_tokens_per_s=10 / self.token_s,
                warmup_decode_tokens_per_s=1 / self.token_s,
            )
        )

    def _prefilled(self, running: _Running) -> None:
        if self._is_over(running):
            return
        running.started = True
        self._burn(running, PREFILL_J)
        self._on_event(protocol.Started(job_id=running.job.job_id, prompt_tokens=running.prompt_tokens))
        self._later(TOKENS_PER_WORD * self.token_s, self._decoded, running)

    def _decoded(self, running: _Running) -> None:
        if self._is_over(running):
            return
        most = running.job.max_tokens or 1
        count = min(TOKENS_PER_WORD, most - running.decoded)
        pieces = tuple(TokenPiece(f"{running.decoded + step} ") for step in range(count))
        running.decoded += count
        self._burn(running, count * TOKEN_J)
        self._on_event(Tokens(jobs=(JobPieces(job_id=running.job.job_id, pieces=pieces),)))
        if running.decoded >= most:
            self._finish(running, "length")
        else:
            self._later(TOKENS_PER_WORD * self.token_s, self._decoded, running)

    def _finish(self, running: _Running, reason: str) -> None:
        if self._is_over(running):
            return
        del self._running[running.job.job_id]
        self._on_event(
            protocol.Finished(
                job_id=running.job.job_id,
                reason=reason,
                prompt_tokens=running.prompt_tokens,
                cached_tokens=0,
                decoded_tokens=running.decoded,
                wait_s=0.0,
                prefill_s=self.token_s * running.prompt_tokens / 10 if running.started else None,
                decode_s=self.token_s * running.decoded if running.decoded else None,
            )
        )

    def _is_over(self, running: _Running) -> bool:
        return self._running.get(running.job.job_id) is not running

    def _burn(self, running: _Running, joules: float) -> None:
        job_id = running.job.job_id
        self.joules[job_id] = self.joules.get(job_id, 0.0) + joules


def _words(job: Submit) -> int:
    prompt = job.prompt
    messages = prompt.messages if isinstance(prompt, ChatPrompt) else ()
    text = messages[-1].content if messages else ""
    if not isinstance(prompt, ChatPrompt):
        text = prompt.text
    return len(text.split())
