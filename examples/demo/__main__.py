"""The demo's command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from rich.console import Console

from examples.demo.client import DemoClient
from examples.demo.errors import DemoError, Interrupted
from examples.demo.fleet import Fleet, unless
from examples.demo.models import CHECKOUT, Model, shipped_model, smaller_model
from examples.demo.report import next_steps, tour_report
from examples.demo.setup import Setup, prepare
from examples.demo.tour import Tour, tour
from moe2.agent.energy.profiles import find_profile

READY_S = 180.0
WIDTH_OF_A_LOG = 120


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description="One coordinator and two agents with a real model, on this machine."
    )
    parser.add_argument("--once", action="store_true", help="end after the tour")
    parser.add_argument(
        "--folder", type=Path, default=CHECKOUT / ".demo", help="for configurations, models and logs; default: .demo"
    )
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_LOG
    try:
        with _alone(folder):
            asyncio.run(_run(console, folder, once=arguments.once))
    except Interrupted:
        return 130
    except DemoError as error:
        console.print(f"\nThe demo failed: {error}", style="bold red", markup=False)
        if error.log:
            console.print(error.log, style="dim", markup=False)
        return 1
    return 0


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two demos in one folder would overwrite each other's files."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"A demo already runs from {folder}.") from None
        yield


async def _run(console: Console, folder: Path, *, once: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        setup, fleet = await unless(_interruption(stop), _present(console, folder, stack))
        if once:
            return
        console.print(next_steps(setup, folder), soft_wrap=True)
        console.print("Ctrl-C ends it.", style="dim")
        await unless(fleet.first_death(), stop.wait())
        console.print("Ending the agents and the coordinator …", style="dim")


async def _interruption(stop: asyncio.Event) -> Interrupted:
    await stop.wait()
    return Interrupted()


async def _present(console: Console, folder: Path, stack: AsyncExitStack) -> tuple[Setup, Fleet]:
    """Everything up to the report. The fleet runs on until `stack` is left."""
    models = await _models(console, folder)
    setup = prepare(folder, models)
    fleet = await stack.enter_async_context(Fleet(setup))
    seen = await unless(fleet.first_death(), _tour_when_ready(console, setup, fleet, models))
    console.print(tour_report(seen))
    return setup, fleet


async def _tour_when_ready(console: Console, setup: Setup, fleet: Fleet, models: list[Model]) -> Tour:
    async with aiohttp.ClientSession() as http:
        client = DemoClient(http, setup.api_url)
        with console.status("Starting one coordinator and two agents …") as status:
            await client.wait_until_ready(
                len(models), lambda said: status.update(f"Waiting for the fleet: {said} …"), timeout_s=READY_S
            )
            hosts = " and ".join(find_profile(model.profile).board for model in models)
            console.print(f"✓ One coordinator and two agents are ready; they simulate: {hosts}.", style="green")
            status.update("Asking prompts under budgets …")
            return await tour(client, setup, fleet, models)


async def _models(console: Console, folder: Path) -> list[Model]:
    shipped = shipped_model()
    with console.status("Making a second expert: re-quantizing the model …"):
        smaller = await smaller_model(shipped.path, folder / "models")
    models = [shipped, smaller]
    for model in models:
        console.print(f"✓ {model.name}: {model.path.stat().st_size / 1e6:.1f} MB", style="green")
    return models


if __name__ == "__main__":
    sys.exit(main())
