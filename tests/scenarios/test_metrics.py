"""Metrics of running daemons, scraped as Prometheus does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from moe2.common.localclient import fetch
from tests.fakes.fleet import Fleet, fleet


async def scrape(running: Fleet) -> dict[str, float]:
    """Sums over all labels, by sample name."""
    async with running.http.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return sums(await answer.text())


def sums(text: str) -> dict[str, float]:
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


async def test_coordinator_counts_what_it_served(tmp_path: Path) -> None:
    """Joules and tokens of the metrics are those of the receipts."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running:
        joules = 0.0
        for _ in range(3):
            async with await running.chat("a b c", max_tokens=5) as answer:
                joules += (await answer.json())["moe2"]["energy"]["joules"]
        await running.quiet()
        await running.until_status(lambda status: any(s.power_w for row in status.agents for s in row.sensors))
        metrics = await scrape(running)
    assert metrics["moe2_requests_total"] == 3
    assert metrics["moe2_decoded_tokens_total"] == 15
    assert abs(metrics["moe2_energy_joules_total"] - joules) < 1e-6
    assert metrics["moe2_request_ttft_seconds_count"] == 3
    assert metrics["moe2_fleet_power_watts"] > 0


async def test_hosts_without_a_sensor_show_no_joules(tmp_path: Path) -> None:
    """The requests are counted as unmeasured."""
    async with fleet(tmp_path) as running:
        async with await running.chat("a b c", max_tokens=5) as answer:
            await answer.read()
        await running.quiet()
        metrics = await scrape(running)
    assert metrics["moe2_requests_unmeasured_total"] == 1
    assert "moe2_energy_joules_total" not in metrics


async def test_refusals_show_as_responses(tmp_path: Path) -> None:
    """What never became a request is seen by its route and status; a made-up path makes no label value."""
    async with fleet(tmp_path) as running:
        async with running.http.post("/v1/chat/completions", data=b"{") as answer:
            assert answer.status == 400
        async with running.http.get("/no/such/path") as answer:
            assert answer.status == 404
        async with running.http.get("/metrics") as answer:
            text = await answer.text()
    assert 'moe2_http_responses_total{route="/v1/chat/completions",status="400"} 1.0' in text
    assert 'moe2_http_responses_total{route="unmatched",status="404"} 1.0' in text
    assert "/no/such/path" not in text


async def test_agent_counts_what_it_decoded(tmp_path: Path) -> None:
    """Its local socket serves metrics that agree with the receipt."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running:
        async with await running.chat("a b c", max_tokens=5) as answer:
            joules = (await answer.json())["moe2"]["energy"]["joules"]
        metrics = sums((await asyncio.to_thread(fetch, tmp_path / "one.sock", "/metrics")).decode())
    assert metrics["moe2_agent_jobs_total"] == 1
    assert metrics["moe2_agent_decoded_tokens_total"] == 5
    assert abs(metrics["moe2_agent_job_energy_joules_total"] - joules) < 1e-6
    assert metrics["moe2_agent_link_up"] == 1
