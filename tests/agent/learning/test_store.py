"""Profiles on disk."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from moe2.agent.learning.store import NoProfileError, StoredProfile, load_profile, setup_of, store_profile
from moe2.agent.settings import ModelSection
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
def model(tmp_path: Path) -> ModelSection:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    return ModelSection(name="small:q4", path=path, threads=2)


def stored(tmp_path: Path, model: ModelSection, power_mode: str | None = "MAXN") -> StoredProfile:
    """A profile of `small:q4`, written."""
    profile = StoredProfile(
        model="small:q4",
        setup=setup_of(model),
        hostname="orin-1",
        measured_at_unix_s=1.5,
        power_mode=power_mode,
        latency=LATENCY,
    )
    store_profile(tmp_path / "state", profile)
    return profile


def load(tmp_path: Path, model: ModelSection, power_mode: str | None = "MAXN") -> StoredProfile:
    return load_profile(tmp_path / "state", model, power_mode)


def test_what_was_stored_is_loaded(tmp_path: Path, model: ModelSection) -> None:
    """All of it, and no draft is left lying about."""
    profile = stored(tmp_path, model)
    assert load(tmp_path, model) == profile
    assert [path.suffix for path in (tmp_path / "state/profiles").iterdir()] == [".json"]


def test_nothing_stored_is_said(tmp_path: Path, model: ModelSection) -> None:
    """It has not been measured."""
    with pytest.raises(NoProfileError, match="small:q4 has not been measured on this host yet"):
        load(tmp_path, model)


def test_another_power_mode_is_another_profile(tmp_path: Path, model: ModelSection) -> None:
    """The refusal names the modes that were measured; both can be kept."""
    stored(tmp_path, model, "MAXN")
    with pytest.raises(NoProfileError, match="not been measured in the power mode MODE_30W, only in MAXN"):
        load(tmp_path, model, "MODE_30W")
    stored(tmp_path, model, "MODE_30W")
    assert load(tmp_path, model, "MAXN").power_mode == "MAXN"
    assert load(tmp_path, model, "MODE_30W").power_mode == "MODE_30W"


def test_a_simulated_hosts_profile_is_not_the_real_hosts(tmp_path: Path, model: ModelSection) -> None:
    """Its power mode has a name of its own."""
    stored(tmp_path, model, "MAXN (simulated)")
    with pytest.raises(NoProfileError, match="only in MAXN-simulated"):
        load(tmp_path, model, "MAXN")


@pytest.mark.parametrize("change", ["file_bytes", "file_modified_at_unix_s", "threads"])
def test_another_setup_is_not_what_was_measured(tmp_path: Path, model: ModelSection, change: str) -> None:
    """Another file, told by its size and its time, or other settings of llama.cpp; what it is is said."""
    stored(tmp_path, model)
    facts = model.path.stat()
    if change == "file_bytes":
        model.path.write_bytes(b"GGUF, longer")
        os.utime(model.path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif change == "threads":
        model = model.model_copy(update={"threads": 1})
    else:
        os.utime(model.path, (1, 1))
    with pytest.raises(NoProfileError, match=f"has changed since .* was measured: {change}"):
        load(tmp_path, model)


def test_half_a_profile_is_none(tmp_path: Path, model: ModelSection) -> None:
    """Said with the file's name."""
    stored(tmp_path, model)
    (path,) = (tmp_path / "state/profiles").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(NoProfileError, match=r"small-q4@MAXN\.json is not a profile"):
        load(tmp_path, model)


def test_a_state_directory_that_is_no_directory_is_an_error_with_a_remedy(tmp_path: Path, model: ModelSection) -> None:
    """Instead of a traceback."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(Moe2Error, match="state directory writable"):
        stored(tmp_path, model)


def test_a_profile_stays_with_its_file_under_another_name(tmp_path: Path, model: ModelSection) -> None:
    """Known by the checksum, also where the file was brought again and is newer; another setup is another one."""
    profile = msgspec.structs.replace(stored(tmp_path, model), file_sha256="ab" * 32)
    store_profile(tmp_path / "state", profile)
    os.utime(model.path, (1, 1))
    renamed = model.model_copy(update={"name": "renamed"})
    found = load_profile(tmp_path / "state", renamed, "MAXN", "ab" * 32)
    assert (found.model, found.latency) == ("renamed", LATENCY)
    for section, sha256 in (
        (renamed, "cd" * 32),
        (renamed, None),
        (renamed.model_copy(update={"threads": 7}), "ab" * 32),
    ):
        with pytest.raises(NoProfileError, match="renamed has not been measured"):
            load_profile(tmp_path / "state", section, "MAXN", sha256)


def test_another_file_of_the_same_name_size_and_time_is_not_what_was_measured(
    tmp_path: Path, model: ModelSection
) -> None:
    """The checksum tells."""
    store_profile(tmp_path / "state", msgspec.structs.replace(stored(tmp_path, model), file_sha256="ab" * 32))
    with pytest.raises(NoProfileError, match="file_sha256"):
        load_profile(tmp_path / "state", model, "MAXN", "cd" * 32)


def test_a_profile_of_before_checksums_is_still_read(tmp_path: Path, model: ModelSection) -> None:
    """By name, size and time, as it was written."""
    profile = stored(tmp_path, model)
    assert load_profile(tmp_path / "state", model, "MAXN", "ab" * 32) == profile
