"""The job that counts: how many tokens a prompt has. It needs neither the model nor a place in its cache."""

from __future__ import annotations

from moe2.agent.engine.decoding.batch import Chunk, Run
from moe2.agent.engine.decoding.job import Job
from moe2.agent.engine.protocol import Event
from moe2.common.link.messages import Submit


class Counting(Job):
    """A job that has ended as soon as its prompt is tokenized: nothing of the prompt is to be seen or continued."""

    def __init__(self, request: Submit, prompt: list[int], *, queued_at_s: float) -> None:
        super().__init__(request.job_id, prompt, cells=0, queued_at_s=queued_at_s)
        self.reason = "length"

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        """Do nothing: no batch has anything of this job."""

    def success(self, now_s: float) -> Event:
        return self._finished(now_s)
