"""Checkpoints: written and read back, and refused when they cannot be trusted."""

from __future__ import annotations

import struct
from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from moe2.coordinator.gate.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tests.fakes.fulldisk import room_for_bytes
from tests.fakes.gates import MadeGate


@pytest.fixture
def checkpoint(made: MadeGate, tmp_path: Path) -> Path:
    path = tmp_path / "gate.safetensors"
    save_checkpoint(path, made.gate.parameters, made.manifest)
    return path


def test_a_gate_survives_the_file(made: MadeGate, checkpoint: Path) -> None:
    """The gate read back predicts exactly the same, and its manifest is the same."""
    gate, manifest = load_checkpoint(checkpoint)
    assert manifest == made.manifest
    for prompt in ("python function", "who is king?", ""):
        assert np.array_equal(gate.predict(prompt).probabilities, made.gate.predict(prompt).probabilities)


def test_lengths_of_answers_survive_the_file(made: MadeGate, tmp_path: Path) -> None:
    """Each prompt is told the lengths of its kind; of an expert without any it stays unknown."""
    path, shape = tmp_path / "gate.safetensors", made.gate.parameters.profile.shape
    lengths = np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    lengths[:, 0] = np.nan
    save_checkpoint(path, made.gate.parameters, made.manifest, answer_tokens=lengths)
    gate, _ = load_checkpoint(path)
    found = gate.predict("who is king?", 1).answer_tokens
    assert found is not None
    assert np.isnan(found[0])
    assert np.array_equal(found[1:], lengths[1, 1:])


@pytest.mark.parametrize("length", [-1.0, np.inf])
def test_impossible_lengths_are_refused(made: MadeGate, tmp_path: Path, length: float) -> None:
    """A file that says so is no checkpoint to choose by."""
    path = tmp_path / "gate.safetensors"
    lengths = np.full(made.gate.parameters.profile.shape, length)
    save_checkpoint(path, made.gate.parameters, made.manifest, answer_tokens=lengths)
    with pytest.raises(CheckpointError, match="lengths of answers"):
        load_checkpoint(path)


def test_what_file_an_expert_was_survives(made: MadeGate, tmp_path: Path) -> None:
    """The manifest tells checksums by name; the gate has them in the order of its experts."""
    path = tmp_path / "gate.safetensors"
    save_checkpoint(path, made.gate.parameters, msgspec.structs.replace(made.manifest, files={"expert-1": "ab" * 32}))
    gate, manifest = load_checkpoint(path)
    assert manifest.files == {"expert-1": "ab" * 32}
    assert gate.files == (None, "ab" * 32, None)


def test_a_checkpoint_of_an_earlier_release_knows_names_alone(checkpoint: Path) -> None:
    """Without checksums in its manifest it is read as before."""
    rewritten(checkpoint, b'\\"files\\":{}', b'\\"filez\\":{}')
    gate, manifest = load_checkpoint(checkpoint)
    assert (manifest.files, set(gate.files)) == ({}, {None})


def test_the_same_gate_gives_the_same_bytes(made: MadeGate, checkpoint: Path, tmp_path: Path) -> None:
    """Writing is deterministic."""
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, made.gate.parameters, made.manifest)
    assert again.read_bytes() == checkpoint.read_bytes()


def test_the_official_library_reads_it(made: MadeGate, checkpoint: Path) -> None:
    """The file is valid safetensors, its manifest in the metadata."""
    tensors = load_file(checkpoint)
    assert np.array_equal(tensors["profile"], made.gate.parameters.profile)
    with safe_open(checkpoint, framework="numpy") as file:
        manifest = msgspec.json.decode(file.metadata()["manifest"])
    assert manifest["experts"] == list(made.manifest.experts)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5000, -1])
def test_a_file_cut_short_is_refused(checkpoint: Path, keep: int) -> None:
    """Cut anywhere, the file is refused with a clear error."""
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cut short"):
        load_checkpoint(checkpoint)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    """A checkpoint that is not there is named."""
    with pytest.raises(CheckpointError, match=r"none\.safetensors cannot be read"):
        load_checkpoint(tmp_path / "none.safetensors")


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the same length: the file's frame stays intact."""
    assert len(old) == len(new)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'{\\"version\\":1', b'{\\"version\\":9', "version 9"),
        (b'"manifest":', b'"manifesT":', "no manifest"),
        (b'"profile":', b'"profilE":', "lacks profile"),
        (b'"dtype":"F32"', b'"dtype":"I32"', "is not understood"),
        (b'\\"tau\\":0.1', b'\\"tau\\":-.1', "manifest"),
        (b'\\"tau\\":0.1', b'\\"tau\\":0.0', "tau must be positive"),
        (b'\\"bucket_bits\\":10', b'\\"bucket_bits\\":11', "does not fit together"),
    ],
)
def test_damaged_headers_are_refused(checkpoint: Path, old: bytes, new: bytes, told: str) -> None:
    """Another version, lost tensors, other types and sizes that do not fit are each refused."""
    rewritten(checkpoint, old, new)
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(checkpoint)


def test_values_that_are_not_finite_are_refused(made: MadeGate, checkpoint: Path) -> None:
    """A NaN among the parameters is found at loading, not in an answer."""
    profile = made.gate.parameters.profile.tobytes()
    rewritten(checkpoint, profile, np.float32("nan").tobytes() + profile[4:])
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(checkpoint)


def test_features_of_another_version_are_refused(made: MadeGate, tmp_path: Path) -> None:
    """A gate trained on other features must not be served with these."""
    path = tmp_path / "old.safetensors"
    old = msgspec.structs.replace(made.manifest, features={**made.manifest.features, "version": 0})
    save_checkpoint(path, made.gate.parameters, old)
    with pytest.raises(CheckpointError, match="features of version 0"):
        load_checkpoint(path)


def test_a_checkpoint_with_a_sentence_encoder_is_refused(made: MadeGate, tmp_path: Path) -> None:
    """A gate that was trained with a sentence encoder cannot be served, and the error names the encoder."""
    path = tmp_path / "gate.safetensors"
    features = {**made.manifest.features, "encoder": "all-MiniLM-L6-v2"}
    save_checkpoint(path, made.gate.parameters, msgspec.structs.replace(made.manifest, features=features))
    with pytest.raises(CheckpointError, match="'all-MiniLM-L6-v2'"):
        load_checkpoint(path)


def test_checkpoints_that_name_no_encoder_are_read(made: MadeGate, tmp_path: Path) -> None:
    """A manifest whose encoder is null, as earlier builds wrote it, means n-grams alone."""
    path = tmp_path / "gate.safetensors"
    features = {**made.manifest.features, "encoder": None}
    save_checkpoint(path, made.gate.parameters, msgspec.structs.replace(made.manifest, features=features))
    assert load_checkpoint(path)[0].feature_config == made.gate.feature_config


def test_a_file_by_the_earlier_writer_is_read(made: MadeGate, checkpoint: Path) -> None:
    """Files of earlier builds hold the tensors in the order of the parameters, with an unaligned half-precision one."""
    tensors = load_file(checkpoint)
    header: dict[str, object] = {"__metadata__": {"manifest": msgspec.json.encode(made.manifest).decode()}}
    body = b""
    for entry in fields(made.gate.parameters):
        tensor = tensors[entry.name]
        kind = {"float16": "F16", "float32": "F32"}[tensor.dtype.name]
        offsets = [len(body), len(body) + tensor.nbytes]
        header[entry.name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        body += tensor.tobytes()
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    checkpoint.write_bytes(struct.pack("<Q", len(text)) + text + body)
    gate, _ = load_checkpoint(checkpoint)
    assert np.array_equal(gate.predict("who is king?").logits, made.gate.predict("who is king?").logits)


def test_a_failed_write_leaves_the_old_file(made: MadeGate, checkpoint: Path) -> None:
    """A full disk while writing leaves the previous checkpoint whole and no draft behind."""
    before = checkpoint.read_bytes()
    with room_for_bytes(1000), pytest.raises(OSError, match="too large"):
        save_checkpoint(checkpoint, made.gate.parameters, made.manifest)
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
