"""Every fault of a network, in every phase of a request: one outcome, accounted, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from moe2.common.link.wire import DEFAULT_MAX_FRAME_BYTES
from tests.fakes import faultproxy
from tests.scenarios.faults.bench import (
    ANSWER,
    MAX_FRAME_BYTES,
    PHASES,
    WORDS,
    WRITTEN,
    Bench,
    Phase,
    Resources,
    assert_accounted,
    assert_one_end,
    assert_settled,
    assert_survived,
    bench,
    in_phase,
    panel_answer,
)

Fault = Callable[[Bench], Awaitable[None]]


async def reset(built: Bench) -> None:
    built.proxy.latest.reset()


async def blackhole_up(built: Bench) -> None:
    built.proxy.latest.up.drop()


async def blackhole_down(built: Bench) -> None:
    built.proxy.latest.down.drop()


async def blackhole(built: Bench) -> None:
    built.proxy.latest.up.drop()
    built.proxy.latest.down.drop()


async def half_close_up(built: Bench) -> None:
    built.proxy.latest.up.half_close()


async def half_close_down(built: Bench) -> None:
    built.proxy.latest.down.half_close()


async def truncate_up(built: Bench) -> None:
    await built.proxy.latest.up.next(None, faultproxy.truncated).wait()


async def truncate_and_close(built: Bench) -> None:
    connection = built.proxy.latest
    await connection.up.next(None, faultproxy.truncated).wait()
    connection.up.half_close()


async def truncate_down(built: Bench) -> None:
    await built.proxy.latest.down.next(None, faultproxy.truncated).wait()


async def oversize_up(built: Bench) -> None:
    await built.proxy.latest.up.next(None, faultproxy.oversized(MAX_FRAME_BYTES + 1)).wait()


async def oversize_down(built: Bench) -> None:
    await built.proxy.latest.down.next(None, faultproxy.oversized(DEFAULT_MAX_FRAME_BYTES + 1)).wait()


async def corrupt_up(built: Bench) -> None:
    await built.proxy.latest.up.next(None, faultproxy.corrupted).wait()


async def corrupt_down(built: Bench) -> None:
    await built.proxy.latest.down.next(None, faultproxy.corrupted).wait()


async def misshape_up(built: Bench) -> None:
    await built.proxy.latest.up.next(None, faultproxy.misshapen).wait()


async def lose_one_up(built: Bench) -> None:
    await built.proxy.latest.up.next(None, faultproxy.swallowed).wait()


async def double_up(built: Bench) -> None:
    await built.proxy.latest.up.next(None, faultproxy.doubled).wait()


async def double_down(built: Bench) -> None:
    await built.proxy.latest.down.next(None, faultproxy.doubled).wait()


async def swap_up(built: Bench) -> None:
    first, second = faultproxy.swapped()
    built.proxy.latest.up.next(None, first)
    await built.proxy.latest.up.next(None, second).wait()


FAULTS: tuple[Fault, ...] = (
    reset,
    blackhole_up,
    blackhole_down,
    blackhole,
    half_close_up,
    half_close_down,
    truncate_up,
    truncate_and_close,
    truncate_down,
    oversize_up,
    oversize_down,
    corrupt_up,
    corrupt_down,
    misshape_up,
    lose_one_up,
    double_up,
    double_down,
    swap_up,
)
QUICK = {(reset, Phase.PREFILL), (corrupt_up, Phase.QUEUED), (reset, Phase.MIX)}
OF_WRITERS: dict[Phase, tuple[Fault, ...]] = {
    Phase.RANK_WRITE: (reset, blackhole_up, lose_one_up, swap_up),
    Phase.CONSENSUS_FIRST: (reset, blackhole, corrupt_up, lose_one_up, double_up),
    Phase.CONSENSUS_NEXT: (reset, blackhole_up, truncate_up, lose_one_up, swap_up),
    Phase.RANK_SCORE: (reset, blackhole, truncate_up, oversize_up, corrupt_up, lose_one_up, double_up),
}
"""Writing is streaming that nobody reads, and scoring is a vote: those faults that touch what only these modes do."""
CASES = [
    pytest.param(
        fault, phase, id=f"{fault.__name__}-{phase}", marks=() if (fault, phase) in QUICK else pytest.mark.slow
    )
    for phase in PHASES
    for fault in OF_WRITERS.get(phase, FAULTS)
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "phase"), CASES)
async def test_a_broken_link(tmp_path: Path, fault: Fault, phase: Phase) -> None:
    """The request fails over or fails explicitly, its joules are accounted, the link comes back, nothing leaks."""
    async with bench(tmp_path) as built:
        requests = await in_phase(built, phase)
        before = Resources.now()
        broken = built.proxy.latest
        async with asyncio.timeout(100):
            await fault(built)
            await broken.over.wait()
            requests.let_go(built)
            victim, bystander = await requests.victim, await requests.bystander
            others = [await requests.holder] if requests.holder else []
            await built.fleet.quiet()
            for ended in (victim, bystander, *others):
                assert_one_end(ended)
                assert_accounted(ended)
            assert (bystander.text, bystander.error) == (ANSWER, None)
            assert_survived(victim, phase, outcome="lost", code="agent_lost")
            await built.fleet.until(ready=2)
            again = await built.ask(model=built.pinned("shaky"))
            assert again.text == ANSWER
            await before.back()
        assert_settled(built, requests=3 + len(others))


@pytest.mark.slow
@pytest.mark.parametrize("phase", [p if p is Phase.STREAM else pytest.param(p, marks=pytest.mark.slow) for p in PHASES])
@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_slow_link_loses_nothing(tmp_path: Path, phase: Phase, way: str) -> None:
    """Frames that are held up, for less than the silence that counts as gone, arrive: the answer is whole."""
    async with bench(tmp_path) as built:
        requests = await in_phase(built, phase)
        direction = getattr(built.proxy.latest, way)
        direction.hold()
        async with asyncio.timeout(100):
            built.shaky.release()
            requests.held.answer()
            await direction.passed.get()
            direction.release()
            requests.let_go(built)
            victim, bystander = await requests.victim, await requests.bystander
            assert (victim.text, bystander.text) == (panel_answer(phase), ANSWER)
            assert victim.error is None
            assert victim.receipt is not None
            assert {line["outcome"] for line in victim.receipt["experts"]} == {"answered", *WRITTEN.get(phase, ())}
            if requests.holder:
                assert (await requests.holder).text == ANSWER
            assert len(built.proxy.connections) == 1


async def test_a_lost_frame_of_tokens_is_no_whole_answer(tmp_path: Path) -> None:
    """Nor an empty one: a gap in the frames breaks the link before the end can arrive."""
    async with bench(tmp_path) as built:
        request = asyncio.create_task(built.ask(max_tokens=1))
        step = await built.shaky.next_phase()
        lost = built.proxy.latest.up.next("tokens", faultproxy.swallowed)
        built.shaky.release()
        step.answer()
        await lost.wait()
        ended = await request
        assert_one_end(ended)
        assert ended.error is not None
        assert ended.error["code"] == "agent_lost"
        assert len(WORDS) > 1
