"""Checkpoints of the gate: one safetensors file, its manifest inside as metadata, so the two cannot be parted.

The format is read and written here directly (8 bytes of header length, a JSON header, the tensors' bytes; published at
github.com/huggingface/safetensors), which keeps a coordinator free of further packages; a test reads the files with the
official library.
"""

from __future__ import annotations

import os
import struct
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.coordinator.gating.features import FEATURES_VERSION, FeatureConfig
from moe2.coordinator.gating.gate import Gate, GateParameters

CHECKPOINT_VERSION: Final = 1
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT: Final = 16 << 20
_RETRAIN: Final = "Train it again with `moe2-coordinator train-gate`."


class CheckpointError(Moe2Error):
    """A checkpoint that cannot be read or used."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is.

    data_sha256: the outcomes file it was trained on. rows: rows per split used. metrics: figures on the validation rows
    (scores 0..1, calibration errors 0..1, log loss in nats). kinds: the kinds of prompts of the task head.
    """

    version: int
    moe2_version: str
    experts: tuple[str, ...]
    kinds: tuple[str, ...]
    features: dict[str, Any]
    tau: float
    data_sha256: str
    source: str | None
    rows: dict[str, int]
    training: dict[str, Any]
    metrics: dict[str, float]

    def feature_config(self) -> FeatureConfig:
        """The features the gate was trained on. Raises CheckpointError where this build computes others."""
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
    """A feature configuration as the manifest holds it."""
    fields_of: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(asdict(config)))
    return fields_of


def save_checkpoint(path: Path, parameters: GateParameters, manifest: Manifest) -> None:
    """Write a checkpoint; the file appears whole or not at all. Same input, same bytes."""
    tensors: dict[str, npt.NDArray[Any]] = {entry.name: getattr(parameters, entry.name) for entry in fields(parameters)}
    tensors["embedding"] = tensors["embedding"].astype(np.float16)
    content = _encoded(tensors, {"manifest": msgspec.json.encode(manifest).decode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> tuple[Gate, Manifest]:
    """Read a checkpoint. Raises CheckpointError, saying what is wrong with the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"The gate's checkpoint {path} cannot be read: {error.strerror}.") from error
    tensors, metadata = _decoded(content, path)
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
    # Before the parameters, whose shapes follow from it: other features are the better explanation.
    config = manifest.feature_config()
    missing = [entry.name for entry in fields(GateParameters) if entry.name not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}.", remedy=_RETRAIN)
    try:
        parameters = GateParameters(**{entry.name: tensors[entry.name] for entry in fields(GateParameters)})
        return Gate(parameters, config, manifest.experts, manifest.tau), manifest
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit together: {error}.", remedy=_RETRAIN) from error


def _encoded(tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    blobs, position = [], 0
    for name, tensor in tensors.items():
        little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
        blob = little.tobytes()
        end = position + len(blob)
        header[name] = {
            "dtype": _NAMES[little.dtype],
            "shape": list(little.shape),
            "data_offsets": [position, end],
        }
        blobs.append(blob)
        position = end
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(blobs)


def _decoded(content: bytes, path: Path) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    """Tensors, as float32, and metadata of a safetensors file. Raises CheckpointError."""
    cut = CheckpointError(f"{path} is cut short or not a safetensors file.", remedy="Copy it again, or train it again.")
    if len(content) < 8:
        raise cut
    (size,) = struct.unpack("<Q", content[:8])
    if size > min(len(content) - 8, _HEADER_LIMIT):
        raise cut
    try:
        header = msgspec.json.decode(content[8 : 8 + size], type=dict[str, dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise cut from error
    metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
    body = content[8 + size :]
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(int(length) for length in entry["shape"])
            start, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: the entry of tensor {name!r} is not understood.", remedy=_RETRAIN
            ) from error
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not 0 <= start <= end <= len(body) or end - start != expected:
            raise cut
        tensors[name] = np.frombuffer(body[start:end], dtype=dtype).reshape(shape).astype(np.float32)
    return tensors, metadata
