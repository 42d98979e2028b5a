"""The entries that the ledger makes of requests."""

from __future__ import annotations

from moe2.common.energy import Energy, Quality
from moe2.common.link.messages import JobUsage
from moe2.coordinator.ledger.accounts import Amount
from moe2.coordinator.ledger.entry import RequestEntry
from moe2.coordinator.serving.bookkeeper import request_entry, used
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.experts import expert
from tests.coordinator.lives import LifeBench


def entry(life: Lifecycle) -> RequestEntry:
    return request_entry(life, receipt_of(life), Amount(), at_unix_s=0.0, day="1970-01-01", was_reserved=False)


def usage(joules: float | None, *, prompt: int = 7) -> JobUsage:
    energy = Energy(joules=joules, quality=Quality.MEASURED_COUNTER)
    return JobUsage(prompt_tokens=prompt, decoded_tokens=5, queue_s=0.5, prefill_s=0.25, decode_s=1.0, energy=energy)


def test_failed_work_is_entered_beside_what_answered() -> None:
    """Each attempt is entered with its own joules and outcome, and the request with their sum."""
    bench = LifeBench().admitted()
    bench.failed(usage=usage(1.0))
    bench.done(attempt=1, usage=usage(2.0))
    written = entry(bench.life)
    assert [(attempt.outcome, attempt.joules) for attempt in written.attempts] == [("failed", 1.0), ("answered", 2.0)]
    assert (written.outcome, written.code, written.joules) == ("completed", "stop", 3.0)
    assert written.attempts[1].seconds == 1.75


def test_an_attempt_is_entered_with_the_file_that_the_model_was() -> None:
    """The checksum is that of the report that the expert was chosen by; None where it had none."""
    bench = LifeBench(expert("agent-1", file_sha256="ab" * 32), expert("agent-2")).admitted()
    bench.failed(usage=usage(1.0))
    bench.done(attempt=1, usage=usage(2.0))
    assert [attempt.file_sha256 for attempt in entry(bench.life).attempts] == ["ab" * 32, None]


def test_a_lost_expert_leaves_joules_and_tokens_unknown() -> None:
    """The joules and tokens of a lost expert are unknown."""
    bench = LifeBench().admitted()
    bench.tokens("a")
    bench.lost()
    written = entry(bench.life)
    assert (written.joules, written.quality, written.decoded_tokens) == (None, "unmeasured", None)
    assert used(bench.life, receipt_of(bench.life)) == Amount(None, None)


def test_a_request_that_never_ran_used_nothing() -> None:
    """A request that never ran is entered with an exact zero."""
    bench = LifeBench().admitted()
    for attempt in range(3):
        bench.failed("queue_full", attempt=attempt, usage=None)
    assert used(bench.life, receipt_of(bench.life)) == Amount(0.0, 0)


def test_a_text_that_no_database_takes_is_mended() -> None:
    """Lone surrogates in a text are replaced, and long texts are cut."""
    bench = LifeBench(model="a\ud800" + "b" * 1000).admitted()
    bench.done()
    assert entry(bench.life).model == "a?" + "b" * 198
