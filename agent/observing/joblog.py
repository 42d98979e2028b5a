"""What the log says of each job."""

from __future__ import annotations

import structlog

from moe2.common.link.messages import JobDone, JobFailed, JobScored, JobStarted, JobWord

log = structlog.get_logger()


def log_job(message: JobWord, request_id: str) -> None:
    """One line per fact, under the id that the coordinator's log and the client's response carry too."""
    match message:
        case JobStarted(job_id=job_id, queue_s=queue_s):
            log.debug("job_started", request_id=request_id, job_id=job_id, queue_s=round(queue_s, 4))
        case JobDone(job_id=job_id, usage=usage) | JobScored(job_id=job_id, usage=usage):
            log.info(
                "job_done",
                request_id=request_id,
                job_id=job_id,
                reason=message.reason if isinstance(message, JobDone) else "scored",
                decoded_tokens=usage.decoded_tokens,
                joules=usage.energy.joules,
                energy_quality=usage.energy.quality,
            )
        case JobFailed(job_id=job_id, code=code, message=text):
            log.warning("job_failed", request_id=request_id, job_id=job_id, code=code, detail=text)
