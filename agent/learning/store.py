"""Measured profiles on disk, so that a restarted agent begins with what is known of its experts.

One file per model and power mode, in JSON, written by `moe2-agent bench` and by an agent that shuts down. A simulated
host's power modes have names of their own, so its joules never pass for a real host's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from moe2.agent.engine.llama.parts import parts_of
from moe2.agent.learning.costs import ExpertCosts
from moe2.agent.settings import ModelSection
from moe2.common.cost import EnergyProfile, LatencyProfile
from moe2.common.errors import Moe2Error, file_remedy
from moe2.common.statefile import replace_file

log = structlog.get_logger()

FOLDER = "profiles"


class NoProfileError(Moe2Error):
    """There is no stored profile that could be used."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What an expert's speed depends on, besides the host: the model's file and how llama.cpp is told to run it."""

    file_bytes: int
    file_modified_at_unix_s: float
    threads: int | None
    gpu_layers: int
    batch_tokens: int
    flash_attention: bool | None
    cache_type: str = "f16"
    kv_unified: bool = True
    lora: tuple[tuple[str, float], ...] = ()


class StoredProfile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured of one expert in one power mode. latency, energy: None where nothing could be measured.

    hostname: where, for people to read. file_sha256: of the model's file, whatever its name and its time; None where it
    was not known, and in files of earlier releases.
    """

    model: str
    setup: Setup
    hostname: str
    measured_at_unix_s: float
    power_mode: str | None = None
    latency: LatencyProfile | None = None
    energy: EnergyProfile | None = None
    file_sha256: str | None = None


def setup_of(section: ModelSection) -> Setup:
    """Raises OSError if the model's file cannot be looked at."""
    facts = [part.stat() for part in parts_of(section.path)]
    return Setup(
        file_bytes=sum(each.st_size for each in facts),
        file_modified_at_unix_s=max(each.st_mtime for each in facts),
        threads=section.threads,
        gpu_layers=section.gpu_layers,
        batch_tokens=section.batch_tokens,
        flash_attention=section.flash_attention,
        cache_type=section.cache_type,
        kv_unified=section.kv_unified,
        lora=tuple((str(lora.path), lora.scale) for lora in section.lora),
    )


def store_profile(state_dir: Path, profile: StoredProfile) -> Path:
    """Write the profile, replacing an older one of the same model and power mode; where it lies.

    Raises Moe2Error if the directory cannot be used.
    """
    path = _path(state_dir, profile.model, profile.power_mode)
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(profile), indent=2), mode=0o644)
    except OSError as error:
        raise Moe2Error(
            f"The profile cannot be written to {path}: {error.strerror}.",
            remedy=file_remedy(
                error, "Make the state directory writable for this user, or run the command as the agent's user."
            ),
        ) from error
    return path


def load_profile(
    state_dir: Path, section: ModelSection, power_mode: str | None, sha256: str | None = None
) -> StoredProfile:
    """The stored profile: of the model's name, or of the same file under another one.

    sha256: of the model's file, where it is known. Raises NoProfileError, which says why there is none to use.
    """
    try:
        return _named_profile(state_dir, section, power_mode, sha256)
    except NoProfileError:
        found = _profile_of_file(state_dir, section, power_mode, sha256)
        if found is None:
            raise
        return found


def _profile_of_file(
    state_dir: Path, section: ModelSection, power_mode: str | None, sha256: str | None
) -> StoredProfile | None:
    """The newest profile of the same file in the same setup, under whatever name; None where there is none."""
    found: list[StoredProfile] = []
    for path in state_dir.joinpath(FOLDER).glob(f"*@{_mode_part(power_mode)}.json") if sha256 else ():
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=StoredProfile)
            if stored.file_sha256 == sha256 and not _changes(stored, section, sha256):
                found.append(msgspec.structs.replace(stored, model=section.name))
        except (OSError, msgspec.MsgspecError):
            continue
    return max(found, key=lambda one: one.measured_at_unix_s, default=None)


def _changes(stored: StoredProfile, section: ModelSection, sha256: str | None) -> list[str]:
    """What differs between a profile's setup and the present one. A file's time is nothing where its checksum is known.

    Raises OSError if the model's file cannot be looked at.
    """
    setup = setup_of(section)
    changed = [name for name in setup.__struct_fields__ if getattr(setup, name) != getattr(stored.setup, name)]
    if sha256 is None or stored.file_sha256 is None:
        return changed
    same_file = {"file_bytes", "file_modified_at_unix_s"}
    return [
        *(("file_sha256",) if sha256 != stored.file_sha256 else ()),
        *(one for one in changed if one not in same_file),
    ]


def _named_profile(state_dir: Path, section: ModelSection, power_mode: str | None, sha256: str | None) -> StoredProfile:
    model = section.name
    path = _path(state_dir, model, power_mode)
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=StoredProfile)
        changed = _changes(stored, section, sha256)
    except FileNotFoundError:
        raise NoProfileError(_why_missing(path, model, power_mode)) from None
    except OSError as error:
        raise NoProfileError(f"{error.filename} cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise NoProfileError(f"{path} is not a profile that this release can read: {error}.") from error
    if changed:
        raise NoProfileError(f"{model} has changed since {path} was measured: {', '.join(changed)}.")
    return stored


def restored_profiles(
    state_dir: Path,
    models: Sequence[ModelSection],
    power_mode: str | None,
    known_sha256: Callable[[Path], str | None],
) -> tuple[StoredProfile, ...]:
    """Returns the stored profiles of these models in this power mode, as far as there are any to use.

    known_sha256: a file's checksum where it is known without reading the file; may raise OSError.
    """
    found = []
    for model in models:
        try:
            stored = load_profile(state_dir, model, power_mode, _sha256_of(model.path, known_sha256))
        except NoProfileError as error:
            log.info("profile_not_restored", model=model.name, reason=str(error))
        else:
            found.append(stored)
            log.info("profile_restored", model=model.name, measured_at_unix_s=stored.measured_at_unix_s)
    return tuple(found)


def store_costs(
    state_dir: Path,
    learned: Mapping[ModelSection, ExpertCosts],
    hostname: str,
    power_mode: str | None,
    known_sha256: Callable[[Path], str | None],
) -> None:
    """Keeps what was learned of each model in the present power mode for the next start.

    known_sha256: as of `restored_profiles`.
    """
    for section, costs in learned.items():
        if costs.latency is None or not costs.latency.n_requests:
            continue
        try:
            profile = StoredProfile(
                model=section.name,
                setup=setup_of(section),
                hostname=hostname,
                measured_at_unix_s=time.time(),
                power_mode=power_mode,
                latency=costs.latency,
                energy=costs.energy,
                file_sha256=_sha256_of(section.path, known_sha256),
            )
            store_profile(state_dir, profile)
        except (OSError, Moe2Error) as error:
            log.warning("profile_not_stored", model=section.name, reason=str(error))


def _sha256_of(path: Path, known_sha256: Callable[[Path], str | None]) -> str | None:
    try:
        return known_sha256(path)
    except OSError:
        return None


def _why_missing(path: Path, model: str, power_mode: str | None) -> str:
    others = sorted(path.parent.glob(f"{_model_part(model)}@*.json"))
    if not others:
        return f"{model} has not been measured on this host yet."
    known = ", ".join(other.stem.partition("@")[2] for other in others)
    return f"{model} has not been measured in the power mode {_mode_part(power_mode)}, only in {known}."


def _path(state_dir: Path, model: str, power_mode: str | None) -> Path:
    return state_dir / FOLDER / f"{_model_part(model)}@{_mode_part(power_mode)}.json"


def _model_part(model: str) -> str:
    """Names are restricted by the settings; a colon is the one character that not every file system takes."""
    return model.replace(":", "-")


def _mode_part(power_mode: str | None) -> str:
    """Power modes may hold anything: whatever is no letter, digit or underscore becomes a dash."""
    return re.sub(r"\W+", "-", power_mode or "default").strip("-")
