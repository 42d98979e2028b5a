"""Profiles on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moe2.agent.profilestore import NoProfileError, StoredProfile, file_of, load_profile, store_profile
from moe2.common.cost import LatencyProfile, Spread
from moe2.common.errors import Moe2Error

LATENCY = LatencyProfile(
    prefill=(0.0, 0.001, 0.0, 0.0),
    decode=(0.01, 0.0, 0.0),
    slots=2,
    service_s=1.0,
    ttft=Spread(0.0, 0.1),
    inter_token=Spread(0.0, 0.1),
    total=Spread(0.0, 0.1),
    n_requests=9,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    return path


def stored(tmp_path: Path, model: Path, power_mode: str | None = "MAXN") -> StoredProfile:
    """A profile of `small:q4`, written."""
    profile = StoredProfile(
        model="small:q4",
        file=file_of(model),
        hostname="orin-1",
        measured_at_unix_s=1.5,
        power_mode=power_mode,
        latency=LATENCY,
    )
    store_profile(tmp_path / "state", profile)
    return profile


def load(tmp_path: Path, model: Path, power_mode: str | None = "MAXN") -> StoredProfile:
    return load_profile(tmp_path / "state", "small:q4", power_mode, model)


def test_what_was_stored_is_loaded(tmp_path: Path, model: Path) -> None:
    """All of it, and no draft is left lying about."""
    profile = stored(tmp_path, model)
    assert load(tmp_path, model) == profile
    assert [path.suffix for path in (tmp_path / "state/profiles").iterdir()] == [".json"]


def test_nothing_stored_is_said(tmp_path: Path, model: Path) -> None:
    """It has not been measured."""
    with pytest.raises(NoProfileError, match="small:q4 has not been measured on this host yet"):
        load(tmp_path, model)


def test_another_power_mode_is_another_profile(tmp_path: Path, model: Path) -> None:
    """The refusal names the modes that were measured; both can be kept."""
    stored(tmp_path, model, "MAXN")
    with pytest.raises(NoProfileError, match="not been measured in the power mode MODE_30W, only in MAXN"):
        load(tmp_path, model, "MODE_30W")
    stored(tmp_path, model, "MODE_30W")
    assert load(tmp_path, model, "MAXN").power_mode == "MAXN"
    assert load(tmp_path, model, "MODE_30W").power_mode == "MODE_30W"


def test_a_simulated_hosts_profile_is_not_the_real_hosts(tmp_path: Path, model: Path) -> None:
    """Its power mode has a name of its own."""
    stored(tmp_path, model, "MAXN (simulated)")
    with pytest.raises(NoProfileError, match="only in MAXN-simulated"):
        load(tmp_path, model, "MAXN")


@pytest.mark.parametrize("change", ["size", "time"])
def test_another_file_is_not_what_was_measured(tmp_path: Path, model: Path, change: str) -> None:
    """Told by its size and its time."""
    stored(tmp_path, model)
    if change == "size":
        facts = model.stat()
        model.write_bytes(b"GGUF, longer")
        os.utime(model, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    else:
        os.utime(model, (1, 1))
    with pytest.raises(NoProfileError, match="has changed since"):
        load(tmp_path, model)


def test_half_a_profile_is_none(tmp_path: Path, model: Path) -> None:
    """Said with the file's name."""
    stored(tmp_path, model)
    (path,) = (tmp_path / "state/profiles").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(NoProfileError, match=r"small-q4@MAXN\.json is not a profile"):
        load(tmp_path, model)


def test_a_state_directory_that_is_no_directory_is_an_error_with_a_remedy(tmp_path: Path, model: Path) -> None:
    """Instead of a traceback."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(Moe2Error, match="state directory writable"):
        stored(tmp_path, model)
