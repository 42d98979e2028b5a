"""A host whose coordinator shares a database: what it needs is installed, and the tables are those of the release."""

from __future__ import annotations

import pytest

from tests.install.fakehost import FakeHost, changed

pytestmark = pytest.mark.slow


def test_what_speaks_to_postgresql_is_installed_where_it_was_asked_for(host: FakeHost) -> None:
    """And kept by every later release; nobody else gets it."""
    host.install("coordinator")
    assert any(".[coordinator]" in call for call in host.calls())
    host.install("coordinator", "--postgresql")
    changed(host)
    host.calls()
    assert host.install("upgrade").returncode == 0
    assert any(".[coordinator,postgresql]" in call for call in host.calls())


def test_the_shared_databases_tables_are_brought_up_to_date_before_the_new_release_starts(host: FakeHost) -> None:
    """By the new release; where that fails, the former one stays in use and is not stopped."""
    host.install("coordinator", "--postgresql")
    config = host.root / "etc/moe2/coordinator.toml"
    config.write_text(config.read_text().replace("[database]", '[database]\nurl = "postgresql://moe2@db/moe2"', 1))
    host.calls()
    changed(host)
    assert host.install("upgrade").returncode == 0
    calls = host.calls()
    init = f"moe2-coordinator: database init --config {config}"
    assert calls.index(init) < calls.index("systemctl: restart moe2-coordinator.service")
    former = host.release()
    changed(host, "0.3.0")
    host.fault("coordinator-database")
    failed = host.install("upgrade")
    assert failed.returncode == 1
    assert "nothing else was changed" in failed.stderr
    assert host.release() == former
    assert "systemctl: restart moe2-coordinator.service" not in host.calls()
