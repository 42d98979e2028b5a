"""Measured profiles on disk, so that a restarted agent begins with what `moe2-agent bench` found."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from moe2.common.cost import EnergyProfile, LatencyProfile
from moe2.common.errors import Moe2Error


class StoredProfile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured of one expert in one power mode. latency, energy: None where nothing could be measured."""

    model: str
    file_bytes: int
    measured_at_unix_s: float
    power_mode: str | None = None
    latency: LatencyProfile | None = None
    energy: EnergyProfile | None = None


def store_profile(state_dir: Path, profile: StoredProfile) -> Path:
    """Write the profile, replacing an older one of the same model and power mode; where it lies.

    Raises Moe2Error if the directory cannot be used.
    """
    path = _path(state_dir, profile.model, profile.power_mode)
    draft = path.with_suffix(".draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2))
        # Replaced as a whole: a crash leaves the old profile, never half of a new one.
        os.replace(draft, path)
    except OSError as error:
        raise Moe2Error(
            f"The profile cannot be written to {path}: {error.strerror}.",
            remedy="Make the state directory writable for this user, or run the command as the agent's user.",
        ) from error
    return path


def load_profile(state_dir: Path, model: str, power_mode: str | None, file_bytes: int) -> StoredProfile | None:
    """The stored profile; None if there is none, if it is of another file, or if it cannot be read."""
    try:
        stored = msgspec.json.decode(_path(state_dir, model, power_mode).read_bytes(), type=StoredProfile)
    except (OSError, msgspec.MsgspecError):
        return None
    return stored if stored.file_bytes == file_bytes else None


def _path(state_dir: Path, model: str, power_mode: str | None) -> Path:
    """Names are restricted by the settings, power modes are not: whatever is no letter or digit becomes a dash."""
    mode = "".join(one if one.isalnum() else "-" for one in power_mode or "default")
    return state_dir / "profiles" / f"{model.replace(':', '-')}@{mode}.json"
