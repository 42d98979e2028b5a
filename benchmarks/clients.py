"""What works with which client: real clients from PyPI and npm, driven against a real fleet on this host.

    python -m benchmarks.clients [NAME ...]

NAME is a part of a client's name, such as `langchain`; all are tried without one. They are installed into environments
of their own in `build/clients/` (MOE2_CLIENTS_CACHE names another place), which needs PyPI, npm and Node.js. Prints the
table of docs/clients.md as it was seen. The last line is one JSON object: `clients`, `checks`, `worked`, `unavailable`
(clients that could not be installed, with the reason) and `seconds`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.clients.catalog import CLIENTS, Client
from tests.clients.table import tried_rows, written
from tests.clients.trial import Trial, clients_fleet, tried


async def _tried(clients: Sequence[Client]) -> dict[Client, Trial]:
    with tempfile.TemporaryDirectory(prefix="moe2-clients-") as folder:
        async with clients_fleet(Path(folder)) as running:
            return await tried(running, clients)


def main() -> None:
    """Tries the clients and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = [name.lower() for name in parser.parse_args().names]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    clients = [client for client in CLIENTS if not names or any(name in client.name.lower() for name in names)]
    began_s = time.monotonic()
    trials = asyncio.run(_tried(clients))
    print(written(tried_rows(trials)))
    results = [result for trial in trials.values() for result in trial.results.values()]
    summary = {
        "clients": len(clients),
        "checks": len(results),
        "worked": results.count("ok"),
        "unavailable": {client.name: trial.unavailable for client, trial in trials.items() if trial.unavailable},
        "seconds": round(time.monotonic() - began_s, 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
