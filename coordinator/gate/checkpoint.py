"""Checkpoints of the gate: one safetensors file with its manifest as metadata inside, so that the two stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moe2.common.errors import Moe2Error
from moe2.common.statefile import replace_file
from moe2.coordinator.gate.features import FEATURES_VERSION, FeatureConfig
from moe2.coordinator.gate.gate import Gate, GateParameters
from moe2.coordinator.gate.votes import VoteRecord

CHECKPOINT_VERSION: Final = 1
_DTYPES: Final = frozenset({"F16", "F32", "F64"})
_RETRAIN: Final = "Train it again with `moe2-coordinator train-gate`."


class CheckpointError(Moe2Error):
    """A checkpoint cannot be read or used."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a checkpoint that is stored in it."""

    version: int
    """Version of the checkpoint's format."""
    moe2_version: str
    """Version of moe2 that trained it."""
    experts: tuple[str, ...]
    """Names of the experts, in the order of the gate's outputs."""
    kinds: tuple[str, ...]
    """Names of the kinds of prompts, in the order of the task head's outputs."""
    features: dict[str, Any]
    """The feature configuration, as of `feature_fields`."""
    tau: float
    """Temperature of the gate's logits."""
    data_sha256: str
    """Hash of the outcomes file that it was trained on."""
    source: str | None
    """Source of the rows it was trained on, where the outcomes name one."""
    rows: dict[str, int]
    """Number of rows used, by split."""
    training: dict[str, Any]
    """The training configuration."""
    metrics: dict[str, float]
    """Figures on the validation rows: scores 0..1, calibration errors 0..1, log loss in nats."""
    files: dict[str, str] = {}
    """SHA-256 of the file that an expert was, by its name, where the outcomes tell it; a file is known by it under any
    name. Empty in checkpoints of earlier releases, whose experts are known by their names."""

    def feature_config(self) -> FeatureConfig:
        """The configuration of the features that the gate was trained on.

        Raises CheckpointError where this build computes other features.
        """
        if (encoder := self.features.get("encoder")) is not None:
            raise CheckpointError(
                f"The checkpoint's features name the sentence encoder {encoder!r}, which this build does not have.",
                remedy=_RETRAIN,
            )
        try:
            config = FeatureConfig(
                bucket_bits=int(self.features["bucket_bits"]),
                character_orders=tuple(self.features["character_orders"]),
                word_orders=tuple(self.features["word_orders"]),
                head_bytes=int(self.features["head_bytes"]),
                tail_bytes=int(self.features["tail_bytes"]),
                version=int(self.features["version"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint's features are not understood ({error!r}).", remedy=_RETRAIN
            ) from error
        if config.version != FEATURES_VERSION:
            raise CheckpointError(
                f"The checkpoint uses features of version {config.version}, this build computes {FEATURES_VERSION}.",
                remedy=_RETRAIN,
            )
        return config


def feature_fields(config: FeatureConfig) -> dict[str, Any]:
    """A feature configuration in the form that the manifest holds."""
    fields_of: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(asdict(config)))
    return fields_of


def save_checkpoint(
    path: Path,
    parameters: GateParameters,
    manifest: Manifest,
    votes: VoteRecord | None = None,
    by_scoring: npt.NDArray[np.float64] | None = None,
    answer_tokens: npt.NDArray[np.float64] | None = None,
) -> None:
    """Write a checkpoint; the file appears whole or not at all, and equal input gives equal bytes. Raises OSError."""
    tensors: dict[str, npt.NDArray[Any]] = {entry.name: getattr(parameters, entry.name) for entry in fields(parameters)}
    tensors["embedding"] = tensors["embedding"].astype(np.float16)
    if votes is not None:
        tensors |= _vote_tensors(votes)
    if by_scoring is not None:
        tensors["by_scoring"] = by_scoring.astype(np.float32)
    if answer_tokens is not None:
        tensors["answer_tokens"] = answer_tokens.astype(np.float32)
    content = save(tensors, {"manifest": msgspec.json.encode(manifest).decode()})
    replace_file(path, content, mode=0o644)


def load_checkpoint(path: Path) -> tuple[Gate, Manifest]:
    """Read a checkpoint. Raises CheckpointError, which says what is wrong with the file."""
    tensors, metadata = _contents(path)
    if "manifest" not in metadata:
        raise CheckpointError(f"{path} holds no manifest: it is not a checkpoint of moe2.", remedy=_RETRAIN)
    try:
        manifest = msgspec.json.decode(metadata["manifest"], type=Manifest)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"The manifest of {path} is not understood: {error}.", remedy=_RETRAIN) from error
    if manifest.version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {manifest.version}, this build reads {CHECKPOINT_VERSION}.",
            remedy=_RETRAIN,
        )
    # This comes before the parameters, whose shapes follow from it: other features are the better explanation.
    config = manifest.feature_config()
    missing = [entry.name for entry in fields(GateParameters) if entry.name not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}.", remedy=_RETRAIN)
    try:
        parameters = GateParameters(**{entry.name: tensors[entry.name] for entry in fields(GateParameters)})
        by_scoring, answer_tokens = (
            tensors[name].astype(np.float64) if name in tensors else None for name in ("by_scoring", "answer_tokens")
        )
        votes, files = _votes_in(tensors), manifest.files
        gate = Gate(parameters, config, manifest.experts, manifest.tau, votes, by_scoring, files, answer_tokens)
        return gate, manifest
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit together: {error}.", remedy=_RETRAIN) from error


def _vote_tensors(votes: VoteRecord) -> dict[str, npt.NDArray[Any]]:
    """A record of votes as tensors. Codes are small whole numbers, which 16-bit floats hold exactly."""
    lengths = {} if votes.lengths is None else {"votes.lengths": votes.lengths.astype(np.float16)}
    return lengths | {
        "votes.base": votes.base.astype(np.float32),
        "votes.line": np.array([votes.slope, votes.other], dtype=np.float32),
        "votes.codes": votes.codes.astype(np.float16),
        "votes.kinds": votes.kinds.astype(np.float32),
    }


def checkpoint_sha256(path: Path) -> str | None:
    """The digest of a checkpoint's file, in hexadecimal; None where there is none that can be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _votes_in(tensors: Mapping[str, npt.NDArray[np.float32]]) -> VoteRecord | None:
    """The record of votes in a checkpoint's tensors; None where there is none. Raises ValueError for a broken one."""
    if "votes.codes" not in tensors:
        return None
    missing = [name for name in ("votes.base", "votes.line", "votes.kinds") if name not in tensors]
    if missing or tensors["votes.line"].shape != (2,):
        raise ValueError(f"the record of votes lacks {', '.join(missing) or 'a slope'}")
    codes, kinds = tensors["votes.codes"], tensors["votes.kinds"]
    if not (np.isfinite(codes).all() and np.isfinite(kinds).all() and (kinds >= 0).all()):
        raise ValueError("the record of votes holds values that are not finite, or kinds that are negative")
    slope, other = tensors["votes.line"].tolist()
    lengths = tensors["votes.lengths"].astype(np.float64) if "votes.lengths" in tensors else None
    return VoteRecord(
        base=tensors["votes.base"].astype(np.float64),
        slope=slope,
        other=other,
        codes=codes.astype(np.int16),
        kinds=kinds.astype(np.int16),
        lengths=lengths,
    )


def _contents(path: Path) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    """The tensors, as float32, and the metadata of a safetensors file. Raises CheckpointError."""
    again = "Copy it again, or train it again."
    try:
        with safe_open(path, framework="numpy") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not iterable)
            for name, dtype in types.items():
                if dtype not in _DTYPES:
                    raise CheckpointError(
                        f"{path}: the type {dtype} of tensor {name!r} is not understood.", remedy=again
                    )
            return {name: file.get_tensor(name).astype(np.float32) for name in types}, file.metadata() or {}
    except OSError as error:
        raise CheckpointError(f"The gate's checkpoint {path} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or not a safetensors file ({error}).", remedy=again) from error
