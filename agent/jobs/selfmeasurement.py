"""When an idle expert measures itself, and with what: a few short jobs of its own. PURE.

An expert that is never chosen is never measured by requests, and an energy budget would rule it out for ever. So after
loading, when the power mode has changed and when its figures are old, it runs two short jobs: one that mostly writes
and one that mostly reads, so that both costs can be told apart. A request that comes ends them at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from moe2.agent.jobs.expert import Expert
from moe2.agent.settings import MeasuringSection
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import TextPrompt
from moe2.common.link.reports import ExpertState

JOB_PREFIX = "self-"
JOB_S = 1.5
"""How long one job is to take: long enough for a sensor that is read ten times a second."""
QUIET_S = 3.0
"""How long the host has to be idle before; a GPU still holds its clocks for two seconds after work."""
RETRY_S = 30.0
"""How long to leave an expert alone whose measuring was interrupted."""
STOP_AT = 0.8
"""The share of the bound at which a job is ended: an engine stops after the batch that it is working on."""
MIN_DECODED, MAX_DECODED = 8, 256
_WORDS = ("river", "stone", "lamp", "cloud", "seven", "paper", "green", "door", "music", "winter", "table", "bread")
_SHORT_PROMPT, _LONG_PROMPT = 32, 192
_ASSUMED_TOKEN_S = 0.1
"""Of an expert whose warm-up has measured nothing."""


@dataclass(frozen=True, slots=True)
class MeasuringRules:
    """The bounds of measuring itself.

    max_j: the most joules of the host that are spent on one expert at a time, its idle power included. stale_s: figures
    that are older are measured again.
    """

    max_j: float
    stale_s: float


def rules_of(section: MeasuringSection) -> MeasuringRules | None:
    """Returns the configured bounds; None where it is switched off."""
    return MeasuringRules(max_j=section.max_energy_j, stale_s=section.stale_s) if section.enabled else None


@dataclass
class _Attempt:
    """Measuring one expert in one power mode."""

    jobs: list[Submit]
    spent_j: float = 0.0
    running: str | None = None
    running_j: float = 0.0


@dataclass
class SelfMeasurement:
    """Decides which expert of a core measures itself next. rules: None where the configuration switches it off."""

    rules: MeasuringRules | None
    _attempts: dict[str, _Attempt] = field(default_factory=dict)
    _done_at_s: dict[tuple[str, str | None], float] = field(default_factory=dict)
    _not_before_s: dict[str, float] = field(default_factory=dict)
    _power_mode: str | None = None
    _n_jobs: int = 0

    @property
    def job_id(self) -> str | None:
        """The job that runs now; None if none does."""
        return next((one.running for one in self._attempts.values() if one.running), None)

    def power_mode_changed(self, power_mode: str | None) -> None:
        """The host runs in this mode from now on."""
        self._power_mode = power_mode

    def due_s(self, experts: Iterable[Expert]) -> float | None:
        """When the next expert is to measure itself, if nothing comes before; None where none is."""
        return min((at_s for expert in experts if (at_s := self._due_s(expert)) is not None), default=None)

    def next_job(self, experts: Iterable[Expert], now_s: float) -> Submit | None:
        """Returns the job to run now on an idle host; None if no expert is due."""
        if self.job_id is not None:
            return None
        for expert in experts:
            due_s = self._due_s(expert)
            if due_s is None or due_s > now_s:
                continue
            name = expert.section.name
            attempt = self._attempts.get(name)
            if attempt is None:
                attempt = self._attempts[name] = _Attempt(self._jobs(expert))
            job = attempt.jobs.pop(0)
            attempt.running, attempt.running_j = job.job_id, 0.0
            return job
        return None

    def spent(self, joules: float) -> bool:
        """What the running job has used so far; True if its bound is reached and it has to end."""
        attempt = next((one for one in self._attempts.values() if one.running), None)
        if attempt is None or self.rules is None:
            return False
        attempt.running_j = max(attempt.running_j, joules)
        return attempt.spent_j + attempt.running_j >= STOP_AT * self.rules.max_j

    def ended(self, model: str, joules: float | None, now_s: float) -> None:
        """A job has ended, and its energy is known, or will not be."""
        attempt = self._attempts.get(model)
        if attempt is None or attempt.running is None:
            return
        attempt.spent_j += joules if joules is not None else attempt.running_j
        attempt.running = None
        # A further job costs about as much as the dearest before it; one that cannot be afforded is not begun.
        is_spent = self.rules is None or 2 * attempt.spent_j >= self.rules.max_j
        if not attempt.jobs or is_spent:
            del self._attempts[model]
            self._done_at_s[(model, self._power_mode)] = now_s

    def interrupted(self, model: str, now_s: float) -> None:
        """The running job was ended for something that matters more."""
        if self._attempts.pop(model, None):
            self._not_before_s[model] = now_s + RETRY_S

    def _due_s(self, expert: Expert) -> float | None:
        if self.rules is None or expert.state is not ExpertState.READY or expert.active or expert.queue:
            return None
        name = expert.section.name
        quiet_s = max(expert.idle_since_s or 0.0, self._not_before_s.get(name, 0.0) - QUIET_S) + QUIET_S
        if attempt := self._attempts.get(name):
            # Nothing but its own job came before, unless its engine died of it and was loaded again.
            return None if attempt.running else (expert.loaded_at_s or 0.0) + QUIET_S
        done_at_s = self._done_at_s.get((name, self._power_mode))
        old_at_s = None if done_at_s is None else done_at_s + self.rules.stale_s
        if _is_unmeasured(expert):
            return quiet_s if old_at_s is None else max(quiet_s, old_at_s)
        measured_at_s = max(expert.measured_at_s or 0.0, done_at_s or 0.0)
        return max(quiet_s, measured_at_s + self.rules.stale_s)

    def _jobs(self, expert: Expert) -> list[Submit]:
        latency = expert.costs.latency
        token_s = latency.decode[0] if latency and latency.decode[0] > 0 else _ASSUMED_TOKEN_S
        room = max(1, expert.context_tokens // 2)
        decoded = max(1, min(MAX_DECODED, max(MIN_DECODED, round(JOB_S / token_s)), room))
        writing = self._job(expert.section.name, min(_SHORT_PROMPT, room), decoded)
        return [writing, self._job(expert.section.name, min(_LONG_PROMPT, room), max(1, decoded // 4))]

    def _job(self, model: str, prompt_tokens: int, decoded: int) -> Submit:
        self._n_jobs += 1
        job_id = f"{JOB_PREFIX}{self._n_jobs}"
        # About a token per word, and no beginning in common with another prompt.
        words = [
            str(self._n_jobs),
            *(_WORDS[(self._n_jobs + place) % len(_WORDS)] for place in range(prompt_tokens - 4)),
        ]
        return Submit(
            job_id=job_id,
            request_id=job_id,
            model=model,
            prompt=TextPrompt(text=" ".join(words)),
            sampling=Sampling(temperature=1.0, seed=self._n_jobs),
            max_tokens=decoded,
            cache_prompt=False,
        )


def _is_unmeasured(expert: Expert) -> bool:
    """Whether no request of this power mode has taught what the expert costs, in seconds or in joules."""
    latency, energy = expert.costs.latency, expert.costs.energy
    return latency is None or energy is None or not latency.n_requests or not energy.n_requests
