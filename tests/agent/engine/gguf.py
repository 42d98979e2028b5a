"""Writes the few GGUF files that tests need."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, PoolingType, TokenType

_STRING, _FLOAT32, _UINT32, _BOOLEAN = 8, 6, 4, 7
_F32_TENSOR = 0
_ALIGNMENT = 32
_BERT_NORMS = ("attn_output_norm", "layer_output_norm")


def write_lora(path: Path, tensors: dict[str, npt.NDArray[np.float32]], *, alpha: float) -> Path:
    """A LoRA adapter for a llama model. tensors: by name, shape (rows, columns) as in numpy, float32."""
    fields = [
        _text("general.architecture") + struct.pack("<I", _STRING) + _text("llama"),
        _text("general.type") + struct.pack("<I", _STRING) + _text("adapter"),
        _text("adapter.type") + struct.pack("<I", _STRING) + _text("lora"),
        _text("adapter.lora.alpha") + struct.pack("<If", _FLOAT32, alpha),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields)
    data = b""
    for name, values in tensors.items():
        # GGUF counts dimensions from the innermost one.
        head += _text(name) + struct.pack("<IQQIQ", 2, values.shape[1], values.shape[0], _F32_TENSOR, len(data))
        data += _padded(values.astype("<f4").tobytes())
    path.write_bytes(_padded(head) + data)
    return path


def with_metadata(model: Path, target: Path, key: str, value: int | bool | str) -> Path:
    """A copy of a GGUF file with one more field, a 32-bit number, a boolean or a text."""
    content = model.read_bytes()
    version, n_tensors, n_fields = struct.unpack_from("<IQQ", content, 4)
    if isinstance(value, str):
        field = struct.pack("<I", _STRING) + _text(value)
    else:
        field = struct.pack("<IB", _BOOLEAN, value) if isinstance(value, bool) else struct.pack("<II", _UINT32, value)
    added = _text(key) + field + _text(f"filling.{key}") + struct.pack("<I", _STRING)
    # The tensors stay aligned where they move by a multiple of the alignment.
    added += _text("." * (-(len(added) + 8) % _ALIGNMENT))
    target.write_bytes(b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields + 2) + added + content[24:])
    return target


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)


def write_bert(path: Path, *, words: tuple[str, ...], width: int = 32, context_tokens: int = 64) -> Path:
    """A tiny BERT with random weights, two layers and mean pooling, whose vocabulary has these words."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{word}" for word in words)]
    writer = GGUFWriter(path, "bert")
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 5 + [TokenType.NORMAL] * len(words))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_uint32("tokenizer.ggml.cls_token_id", 2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    draw = np.random.default_rng(1)

    def add(name: str, *shape: int) -> None:
        values = np.ones(shape) if "norm.weight" in name else draw.normal(0.0, 0.2, shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", len(tokens), width)
    add("token_types.weight", 2, width)
    add("position_embd.weight", context_tokens, width)
    for name in ("token_embd_norm", *(f"blk.{n}.{norm}" for n in range(2) for norm in _BERT_NORMS)):
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)
    for block in ("blk.0", "blk.1"):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}.{part}.weight", width, width)
            add(f"{block}.{part}.bias", width)
        add(f"{block}.ffn_up.weight", 2 * width, width)
        add(f"{block}.ffn_up.bias", 2 * width)
        add(f"{block}.ffn_down.weight", width, 2 * width)
        add(f"{block}.ffn_down.bias", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
