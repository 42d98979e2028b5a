"""What the coordinator asks for, in the engine's words. PURE."""

from __future__ import annotations

from moe2.agent.engine import protocol
from moe2.common.messages import FollowJob, Job, ScoreJob


def command_of(order: Job) -> protocol.Job:
    """The engine's command for a job."""
    match order:
        case ScoreJob():
            return protocol.Score(job_id=order.job_id, prompt=order.prompt, continuations=order.continuations)
        case FollowJob():
            return protocol.Follow(
                job_id=order.job_id,
                prompt=order.prompt,
                top_p=order.top_p,
                most=order.most,
                max_tokens=order.max_tokens,
            )
    return protocol.Generate(
        job_id=order.job_id,
        prompt=order.prompt,
        prefix=order.prefix,
        sampling=order.sampling,
        max_tokens=order.max_tokens,
        stop=order.stop,
        logprobs=order.logprobs,
        grammar=order.grammar,
        grammar_syntax=order.grammar_syntax,
        json_schema=order.json_schema,
        forced_tools=order.forced_tools,
    )
