"""The service around requests that engines die with: who is tried in whose place, and whose fault a death is."""

from __future__ import annotations

import asyncio

from moe2.coordinator.serving.effects import Completed, Failed
from tests.coordinator.serving.test_service import ServiceBench
from tests.virtualclock import on_virtual_clock


@on_virtual_clock
async def test_suspects_are_tried_one_after_another_and_before_others() -> None:
    """On the engine that is back: alone, so that the second death leaves no doubt; then whoever only waited."""
    bench = ServiceBench()
    bench.join("agent-1", slots=3, max_queue=1)
    for request_id in ("poison", "innocent", "third", "queued"):
        bench.ask(request_id)
    await bench.engine_died("agent-1", in_batch=("poison.0", "innocent.0", "third.0"), queued=("queued.0",))
    assert bench.service.status().waiting == 4
    await bench.engine_back("agent-1")
    assert bench.given_to("agent-1")[4:] == ["poison.1"]
    await bench.engine_died("agent-1", in_batch=("poison.1",))
    await bench.engine_back("agent-1")
    assert bench.given_to("agent-1")[5:] == ["innocent.1"]
    await bench.done("innocent.1")
    assert bench.given_to("agent-1")[6:] == ["third.1"]
    await bench.done("third.1")
    assert bench.given_to("agent-1")[7:] == ["queued.1"]
    await bench.done("queued.1")
    assert bench.open_breakers() == []
    assert len(bench.receipts) == 4


@on_virtual_clock
async def test_a_suspect_finds_an_idle_engine_in_a_busy_fleet() -> None:
    """The least busy one takes nothing new until it has had it; others wait for the engine that works on."""
    bench = ServiceBench()
    bench.join("agent-1")
    poison = bench.ask("poison")
    bench.join("agent-2", slots=2)
    for request_id in ("b", "c"):
        bench.ask(request_id)
    await bench.engine_died("agent-1", in_batch=("poison.0",))
    bench.ask("d")
    await bench.done("b.0")
    assert bench.given_to("agent-2") == ["b.0", "c.0"], "it is to fall idle"
    await bench.done("c.0")
    assert bench.given_to("agent-2") == ["b.0", "c.0", "poison.1"]
    bench.token("poison.1")
    await asyncio.sleep(0)
    assert bench.given_to("agent-2")[3:] == ["d.0"], "it is past where the engine died"
    await bench.done("poison.1")
    _, outcome = await poison.receive_all()
    assert isinstance(outcome, Completed)


@on_virtual_clock
async def test_deaths_that_a_request_explains_open_no_breaker() -> None:
    """However many there are: the expert is innocent."""
    bench = ServiceBench()
    bench.join("agent-1")
    for n in range(4):
        exchange = bench.ask(f"r{n}")
        for attempt in range(2):
            await bench.engine_died("agent-1", in_batch=(f"r{n}.{attempt}",))
            await bench.engine_back("agent-1")
        _, outcome = await exchange.receive_all()
        assert isinstance(outcome, Failed)
        assert outcome.code == "crash_suspected"
    assert bench.open_breakers() == []


@on_virtual_clock
async def test_deaths_that_no_request_explains_open_the_breaker() -> None:
    """All that it died with were answered elsewhere: the engine itself is bad."""
    bench = ServiceBench("agent-1", "agent-2")
    for n in range(3):
        bench.ask(f"r{n}")
        await bench.engine_died("agent-1", in_batch=(f"r{n}.0",))
        await bench.done(f"r{n}.1")
        assert bench.agent_of(f"r{n}.1") == "agent-2"
        await bench.engine_back("agent-1")
        await asyncio.sleep(1)
    assert bench.open_breakers() == ["agent-1/m"]


@on_virtual_clock
async def test_an_engine_that_dies_with_every_request_once_opens_its_breaker() -> None:
    """An answer to a request that the same engine died with before is no sign of the engine's health."""
    bench = ServiceBench("agent-1")
    bench.ask("well")
    await bench.done("well.0")
    for n in range(3):
        bench.ask(f"r{n}")
        await bench.engine_died("agent-1", in_batch=(f"r{n}.0",))
        await bench.engine_back("agent-1")
        await bench.done(f"r{n}.1")
        await asyncio.sleep(1)
    assert bench.open_breakers() == ["agent-1/m"]


@on_virtual_clock
async def test_an_engine_that_hung_and_was_restarted_is_a_new_one() -> None:
    """Its breaker was open while it hung; innocents are not kept from it afterwards."""
    bench = ServiceBench("agent-1")
    bench.ask("r")
    bench.service.client_gone("r")
    await asyncio.sleep(11)
    assert bench.open_breakers() == ["agent-1/m"]
    await bench.engine_died("agent-1", in_batch=())
    assert bench.open_breakers() == ["agent-1/m"]
    await bench.engine_back("agent-1")
    assert bench.open_breakers() == []
    bench.ask("next")
    assert bench.working[-1] == "next"
