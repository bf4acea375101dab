"""Small models as GPT-NeoX trains and computes them, with the parts that transformers' GPT-NeoX has not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.hugging_face import write_torch

HIDDEN, HEADS, LAYERS, VOCAB, LENGTH = 32, 4, 2, 520, 32
HEAD = HIDDEN // HEADS
BASE: dict[str, Any] = {
    "num_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS, "max_position_embeddings": LENGTH,
    "seq_length": LENGTH, "no_weight_tying": True, "attention_config": [[["global"], LAYERS]],
}  # fmt: skip
Weights = dict[str, np.ndarray]


def width(config: Mapping[str, Any]) -> int:
    """Hidden features: two thirds of four times the width for value and gate together, if it is gated."""
    if config.get("mlp_type") == "llama":
        return 48
    return int(4 * HIDDEN * 2 / 3) // 2 if config.get("activation", "gelu").endswith("glu") else 4 * HIDDEN


def random_weights(config: Mapping[str, Any]) -> Weights:
    """Of every part by itself: queries, keys, values, gates. Sums over four devices are exact."""
    rng, kv = np.random.default_rng(0), config.get("num_kv_heads") or HEADS
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCAB, HIDDEN), "head": (VOCAB, HIDDEN), "norm": (HIDDEN,)}
    shapes |= {"norm_bias": (HIDDEN,), "positions": (LENGTH, HIDDEN)}
    for i in range(LAYERS):
        sizes = {"q": HEADS * HEAD, "k": kv * HEAD, "v": kv * HEAD, "value": width(config), "gate": width(config)}
        for name, size in sizes.items():
            shapes |= {f"{i}.{name}": (size, HIDDEN), f"{i}.{name}_bias": (size,)}
        shapes |= {f"{i}.o": (HIDDEN, HEADS * HEAD), f"{i}.out": (HIDDEN, width(config))}
        for name in ("o_bias", "out_bias", "norm_1", "norm_1_bias", "norm_2", "norm_2_bias"):
            shapes[f"{i}.{name}"] = (HIDDEN,)
    if config.get("norm") == "scalenorm":
        shapes |= {name: (1,) for name in shapes if "norm" in name}
    gain = 6 if config.get("norm") == "scalenorm" else 1
    means = dict.fromkeys(("norm", "norm_1", "norm_2"), gain)
    return {
        name: (rng.standard_normal(shape) * 0.3 + means.get(name.split(".")[-1], 0)).astype(np.float32)
        for name, shape in shapes.items()
    }


def logits(weights: Weights, config: Mapping[str, Any], tokens: np.ndarray) -> np.ndarray:
    """[sequence, vocab] of tokens [sequence], in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    length, kind = len(tokens), config.get("pos_emb", "learned")
    kv, parallel = config.get("num_kv_heads") or HEADS, config.get("gpt_j_residual", False)
    x = w["embed"][tokens] + (w["positions"][:length] if kind == "learned" else 0)

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        if config.get("norm") == "rmsnorm":
            rms = np.linalg.norm(x, axis=-1, keepdims=True) / math.sqrt(HIDDEN)
            return x / (rms + config.get("rms_norm_epsilon", 1e-8)) * w[name]
        if config.get("norm") == "scalenorm":
            return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8) * w[name]
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[name] + w[f"{name}_bias"]

    def rotated(x: np.ndarray) -> np.ndarray:
        if kind != "rotary":
            return x
        n = int(HEAD * config.get("rotary_pct", 1))
        angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, n, 2) / n))
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second, rest = x[..., : n // 2], x[..., n // 2 : n], x[..., n:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)

    def attention(x: np.ndarray, i: int) -> np.ndarray:
        q, k, v = (
            (x @ w[f"{i}.{name}"].T + w[f"{i}.{name}_bias"]).reshape(length, -1, HEAD) for name in ("q", "k", "v")
        )
        q, k, v = rotated(q), rotated(k).repeat(HEADS // kv, 1), v.repeat(HEADS // kv, 1)
        found = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(HEAD)
        distance = np.arange(length)[:, None] - np.arange(length)
        if kind == "alibi":
            found -= 2.0 ** (-8 / HEADS * np.arange(1, HEADS + 1))[:, None, None] * distance
        found[:, distance < 0] = -np.inf
        found = np.exp(found - found.max(-1, keepdims=True))
        found /= found.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", found, v).reshape(length, -1) @ w[f"{i}.o"].T + w[f"{i}.o_bias"]

    def feed_forward(x: np.ndarray, i: int) -> np.ndarray:
        biased = config.get("use_bias_in_mlp", True) and config.get("mlp_type") != "llama"
        value, gate = (x @ w[f"{i}.{name}"].T + biased * w[f"{i}.{name}_bias"] for name in ("value", "gate"))
        if config["activation"] in ("swiglu", "silu"):
            hidden = value * gate / (1 + np.exp(-gate))
        else:
            assert config["activation"] == "relu"
            hidden = np.maximum(value, 0)
        return hidden @ w[f"{i}.out"].T + biased * w[f"{i}.out_bias"]

    for i in range(LAYERS):
        if parallel:
            second = f"{i}.norm_1" if config.get("gpt_j_tied") else f"{i}.norm_2"
            x = x + attention(normed(x, f"{i}.norm_1"), i) + feed_forward(normed(x, second), i)
        else:
            x = x + attention(normed(x, f"{i}.norm_1"), i)
            x = x + feed_forward(normed(x, f"{i}.norm_2"), i)
    return normed(x, "norm") @ w["head"].T


def write(run: Path, weights: Weights, config: Mapping[str, Any], devices: int) -> Path:
    """A run's folder with one checkpoint, cut over devices as mesh-parallel matrices are: by output, or by input."""
    folder = run / "global_step7"
    (folder / "configs").mkdir(parents=True)
    (run / "latest").write_text(folder.name)
    (folder / "configs" / "model.yml").write_text(json.dumps({**config, "model_parallel_size": devices}))
    for device in range(devices):
        for layer, tensors in _layers(weights, config, device, devices).items():
            write_torch(folder / f"layer_{layer:02}-model_{device:02}-model_states.pt", tensors)
    return run


def _layers(weights: Weights, config: Mapping[str, Any], device: int, devices: int) -> dict[int, Weights]:
    """The tensors that a device holds, by the number of the layer."""
    name_of_gain = {"rmsnorm": "scale", "scalenorm": "g"}.get(config.get("norm", "layernorm"), "weight")

    def rows(name: str) -> np.ndarray:
        return np.split(weights[name], devices)[device]

    def columns(name: str) -> np.ndarray:
        return np.ascontiguousarray(np.split(weights[name], devices, 1)[device])

    def norm(name: str, ours: str) -> Weights:
        bias = {f"{name}.bias": weights[f"{ours}_bias"]} if name_of_gain == "weight" else {}
        return {f"{name}.{name_of_gain}": weights[ours], **bias}

    found = {0: {"word_embeddings.weight": rows("embed")}}
    if config.get("pos_emb", "learned") == "learned":
        found[0]["position_embeddings.weight"] = weights["positions"]
    share = devices if config.get("gpt_j_residual") else 1  # each device adds its bias, and the results are summed
    for i in range(LAYERS):
        part = found[i + 2] = {
            **norm("input_layernorm", f"{i}.norm_1"), **norm("post_attention_layernorm", f"{i}.norm_2"),
            "attention.dense.weight": columns(f"{i}.o"), "attention.dense.bias": weights[f"{i}.o_bias"] / share,
        }  # fmt: skip
        for suffix, end in (("", "weight"), ("_bias", "bias")):
            qkv = [rows(f"{i}.{name}{suffix}") for name in ("q", "k", "v")]
            if not config.get("num_kv_heads"):  # the three of each head together
                by_head = np.concatenate([x.reshape(-1, HEAD, *x.shape[1:]) for x in qkv], 1)
                qkv = [by_head.reshape(-1, *by_head.shape[2:])]
            part[f"attention.query_key_value.{end}"] = np.concatenate(qkv)
        if config.get("mlp_type") == "llama":
            part |= {"mlp.w1.weight": rows(f"{i}.gate"), "mlp.w3.weight": rows(f"{i}.value")}
            part["mlp.w2.weight"] = columns(f"{i}.out")
            continue
        names = ("value", "gate") if config["activation"].endswith("glu") else ("value",)
        part["mlp.linear1.weight"] = np.concatenate([rows(f"{i}.{name}") for name in names])
        part["mlp.linear2.weight"] = columns(f"{i}.out")
        if config.get("use_bias_in_mlp", True):
            part["mlp.linear1.bias"] = np.concatenate([rows(f"{i}.{name}_bias") for name in names])
            part["mlp.linear2.bias"] = weights[f"{i}.out_bias"] / share
    found[LAYERS + 3] = norm("norm", "norm")
    found[LAYERS + 4] = {"final_linear.weight": rows("head")}
    return found
