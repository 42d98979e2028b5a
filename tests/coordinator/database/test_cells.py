"""Ten cells of pairs on one database, in virtual time: the simulation of benchmarks/cells.py, small."""

from __future__ import annotations

import pytest

from benchmarks.cells import Cells, figures


@pytest.mark.parametrize("seed", [1, 2])
def test_budgets_hold_and_books_balance_over_ten_cells(seed: int) -> None:
    """With crashes and journals that arrive twice, no limit is exceeded and no entry is lost."""
    cells = Cells(n_keys=20, requests_per_s=60.0, seconds=60.0, seed=seed)
    cells.run()
    found = figures(cells, 60.0)
    assert found["admitted"] > 1000
    assert (found["over_limit"], found["lost_entries"], found["sum_mismatch_uj"]) == (0, 0, 0)


@pytest.mark.slow
def test_two_draws_for_one_need_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation finds coordinators over a limit where the database lends what others have drawn."""
    from moe2.coordinator.ledger import leases

    def careless(drawn: dict[str, int], name: str, limit: int, ask: leases.Ask) -> tuple[dict[str, int], leases.Answer]:
        return {**drawn, name: ask.keep + ask.want}, leases.Answer(ask.keep + ask.want, 0)

    monkeypatch.setattr("benchmarks.cells.lend", careless)
    cells = Cells(n_keys=5, requests_per_s=60.0, seconds=60.0, seed=1)
    cells.run()
    assert figures(cells, 60.0)["over_limit"] > 0
