"""A PostgreSQL of the tests' own, Debian's, on its own socket; it can be killed, made to hang, and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote
from uuid import uuid4

import pytest

from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.schema import migrate

BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)), Path()).parent
_SERVER_USER = "postgres"
POLL_S = 0.01


def _why_not() -> str | None:
    if not (BINARIES / "postgres").exists():
        return "No PostgreSQL: `./install.sh test` installs it where it is root and has apt-get."
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_SERVER_USER)
        except KeyError:
            return f"PostgreSQL does not run as root, and there is no user {_SERVER_USER}."
    return None


needs_postgres = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))
CONFIGURATION = """
listen_addresses = ''
fsync = off
shared_buffers = 16MB
max_connections = 60
jit = off
autovacuum = off
max_wal_size = 128MB
"""


class Postgres:
    """A server with an empty cluster, and a database for each test. As root it runs as the user `postgres`.

    data: where its files are. primary: whose standby it is; it begins as a copy of that one.
    """

    def __init__(self, *, settings: str = "", data: Path | None = None, primary: Postgres | None = None) -> None:
        # In memory where there is such a place: a cluster is thousands of files.
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="moe2-pg-", dir=shared))
        self._user = _SERVER_USER if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.root, self._user)
        self.data = data or self.root / "data"
        self._process: subprocess.Popen[bytes] | None = None
        if primary is not None:
            self._run(
                "pg_basebackup", "-h", primary.root, "-U", "moe2", "-D", self.data, "-R", "-c", "fast", "--no-sync"
            )
        else:
            self._run(
                *("initdb", "-D", self.data, "-A", "trust", "-U", "moe2"),
                *("--no-sync", "--no-instructions", "-E", "UTF8"),
            )
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"{CONFIGURATION}\nunix_socket_directories = '{self.root}'\n{settings}\n")

    def start(self) -> None:
        """Starts the server and waits until it takes connections."""
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [BINARIES / "postgres", "-D", self.data],
                stdout=log,
                stderr=log,
                user=self._user,
                start_new_session=True,
            )
        until_s = monotonic() + 60
        while subprocess.run([BINARIES / "pg_isready", "-q", "-h", self.root], check=False).returncode:
            assert self._process.poll() is None, (self.root / "log").read_text()
            assert monotonic() < until_s, (self.root / "log").read_text()
            sleep(POLL_S)

    def kill(self) -> None:
        """Ends the server with all its processes as a power failure would."""
        if self._process is not None:
            processes = self._processes()
            self._signal(signal.SIGKILL, processes)
            self._process.wait()
            until_s = monotonic() + 30
            # Those in a system call take a moment; the next start would find their shared memory.
            while any(map(_lives, processes)) and monotonic() < until_s:
                sleep(POLL_S)
            self._process = None

    def stop(self) -> None:
        """Shuts the server down, which cuts its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None

    def promote(self) -> None:
        """Makes a standby the primary."""
        self.sql("SELECT pg_promote()")

    def hang(self, *, hangs: bool) -> None:
        """Stops all its processes in mid-work, or lets them go on: what a partition looks like from outside."""
        self._signal(signal.SIGSTOP if hangs else signal.SIGCONT, self._processes())

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[str, ...]]:
        """Runs a statement as an administrator; returns its rows as text."""
        done = subprocess.run(
            [BINARIES / "psql", "-h", self.root, "-U", "moe2", "-d", database, "-Atq", "-F", "\t", "-c", statement],
            check=True,
            capture_output=True,
            text=True,
        )
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]

    def url(self, database: str, *, user: str = "moe2") -> str:
        """The address of one of its databases."""
        return f"postgresql://{user}@/{database}?host={quote(str(self.root), safe='')}"

    def new_database(self) -> str:
        """Makes an empty database and returns its address."""
        name = f"test_{uuid4().hex}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def new_tables(self) -> str:
        """Makes a database with the tables of this release and returns its address."""
        address = self.new_database()
        session = Session(address, name="test")
        migrate(session)
        session.close()
        return address

    def close(self) -> None:
        """Ends the server and removes its files."""
        self.hang(hangs=False)
        self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def lives(self) -> bool:
        """Whether its first process has not ended."""
        return self._process is not None and self._process.poll() is None

    def _run(self, command: str, *arguments: object) -> None:
        subprocess.run([BINARIES / command, *map(str, arguments)], check=True, capture_output=True, user=self._user)

    def _processes(self) -> list[int]:
        """The server's processes, the first one first: each backend leads a group of its own."""
        if self._process is None:
            return []
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]

    @staticmethod
    def _signal(number: signal.Signals, processes: list[int]) -> None:
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _lives(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for yet has no command line."""
    with suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


@contextmanager
def postgres(*, settings: str = "", data: Path | None = None, primary: Postgres | None = None) -> Iterator[Postgres]:
    """A running server for the length of the block."""
    server = Postgres(settings=settings, data=data, primary=primary)
    try:
        server.start()
        yield server
    finally:
        server.close()
