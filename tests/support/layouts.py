"""Small models in the layouts of the programs that trained them: Meta's Llama and GPT-NeoX."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.hugging_face import write_torch

State = Mapping[str, np.ndarray]

LLAMA = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 16,
    "norm_eps": 1e-5,
    "vocab_size": 520,
}
NEOX = {
    "num-layers": 2, "hidden-size": 32, "num-attention-heads": 4, "max-position-embeddings": 32, "seq-length": 32,
    "pos-emb": "rotary", "rotary-pct": 0.25, "gpt_j_residual": True, "no-weight-tying": True, "norm": "layernorm",
    "attention-config": [[["flash"], 2]], "bias-gelu-fusion": True, "lr-decay-style": "cosine",
    "make-vocab-size-divisible-by": 4,
}  # fmt: skip


def llama_state(params: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under Meta's names, of a model with these params."""
    rng = np.random.default_rng(seed)
    dim, head = params["dim"], params["dim"] // params["n_heads"]
    hidden = int(8 * dim / 3)
    hidden = int(params.get("ffn_dim_multiplier", 1) * hidden)
    hidden = -(-hidden // params["multiple_of"]) * params["multiple_of"]
    kv, vocab = head * params.get("n_kv_heads", params["n_heads"]), 520
    shapes = {"tok_embeddings.weight": (vocab, dim), "norm.weight": (dim,), "output.weight": (vocab, dim)}
    for i in range(params["n_layers"]):
        matrices = {"wq": (dim, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, dim)}
        shapes |= {f"layers.{i}.attention.{name}.weight": shape for name, shape in matrices.items()}
        shapes |= {f"layers.{i}.feed_forward.{name}.weight": (hidden, dim) for name in ("w1", "w3")}
        shapes[f"layers.{i}.feed_forward.w2.weight"] = (dim, hidden)
        shapes |= {f"layers.{i}.{name}.weight": (dim,) for name in ("attention_norm", "ffn_norm")}
    return {name: rng.standard_normal(shape, np.float32) * 0.3 + (len(shape) == 1) for name, shape in shapes.items()}


def llama_logits(state: State, params: Mapping[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Logits [sequence, vocab] as Meta's program computes them, with pairs of neighbouring features as complex numbers,
    in float64.
    """
    heads, length = params["n_heads"], len(tokens)
    head, kv_heads = params["dim"] // heads, params.get("n_kv_heads", heads)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + params["norm_eps"]) * state[name].astype(np.float64)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ state[name].astype(np.float64).T

    def rotated(x: np.ndarray) -> np.ndarray:
        angles = np.outer(np.arange(length), params.get("rope_theta", 1e4) ** (-np.arange(0, head, 2) / head))
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    x = state["tok_embeddings.weight"].astype(np.float64)[tokens]
    for i in range(params["n_layers"]):
        at, y = f"layers.{i}.attention", norm(x, f"layers.{i}.attention_norm.weight")
        q = rotated(linear(y, f"{at}.wq.weight").reshape(length, heads, head))
        k = rotated(linear(y, f"{at}.wk.weight").reshape(length, kv_heads, head)).repeat(heads // kv_heads, 1)
        v = linear(y, f"{at}.wv.weight").reshape(length, kv_heads, head).repeat(heads // kv_heads, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head) + np.triu(np.full((length, length), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + linear(np.einsum("hqk,khd->qhd", weights, v).reshape(length, -1), f"{at}.wo.weight")
        forward, y = f"layers.{i}.feed_forward", norm(x, f"layers.{i}.ffn_norm.weight")
        gate = linear(y, f"{forward}.w1.weight")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, f"{forward}.w3.weight"), f"{forward}.w2.weight")
    return linear(norm(x, "norm.weight"), "output.weight")


def write_meta(folder: Path, state: State, params: Mapping[str, Any], shards: int = 1, *, tokens: int = 1) -> Path:
    """Meta's layout, cut over `shards` devices. tokens: the axis along which the embedding is cut."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    axes = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0, "tok_embeddings": tokens}
    for number in range(shards):
        part = {}
        for name, array in state.items():
            axis = axes.get(name.split(".")[-2])
            part[name] = np.ascontiguousarray(array if axis is None else np.split(array, shards, axis)[number])
        write_torch(folder / f"consolidated.{number:02}.pth", {**part, "rope.freqs": np.ones(4, np.float32)})
    return folder


def write_neox(
    run: Path, state: State, config: Mapping[str, Any], shards: int = 1, *, layers: bool = True, step: int = 7
) -> Path:
    """GPT-NeoX's layout of a state dict of transformers' GPT-NeoX: the run's folder, with one checkpoint.

    layers: a file for each layer, as with pipelines.
    """
    folder = run / f"global_step{step}"
    (folder / "configs").mkdir(parents=True)
    (run / "latest").write_text(folder.name)
    config = {**config, "model-parallel-size": shards, "pipe-parallel-size": int(layers)}
    (folder / "configs" / "model.yml").write_text(json.dumps(config))
    n_layer = config["num-layers"]
    for number in range(shards):
        parts: dict[int, dict[str, np.ndarray]] = {}
        for name, array in state.items():
            words = name.split(".")
            kind, part = words[-2], words[-1]
            layer, local = {
                "embed_in": (0, f"word_embeddings.{part}"),
                "final_layer_norm": (n_layer + 3, f"norm.{part}"),
                "embed_out": (n_layer + 4, f"final_linear.{part}"),
            }.get(kind, (0, ""))
            if not local:
                layer, local = int(words[2]) + 2, ".".join(words[3:])
            cut = array
            if kind in ("embed_in", "embed_out", "query_key_value", "dense_h_to_4h"):
                cut = np.split(array, shards)[number]
            elif kind in ("dense", "dense_4h_to_h") and part == "weight":
                cut = np.split(array, shards, 1)[number]
            elif kind in ("dense", "dense_4h_to_h") and config.get("gpt_j_residual"):
                cut = array / shards  # each device adds its own bias, and the results are summed
            parts.setdefault(layer, {})[local] = np.ascontiguousarray(cut, np.float32)
            if layer > 1 and layer < n_layer + 2:
                parts[layer]["attention.rotary_emb.inv_freq"] = np.ones(2, np.float32)
        rank = f"mp_rank_{number:02}_model_states.pt"
        if layers:
            for layer, tensors in parts.items():
                write_torch(folder / f"layer_{layer:02}-model_{number:02}-model_states.pt", tensors)
            continue
        beside = {
            "iteration": step, "args": {"num_layers": n_layer}, "random_rng_state": random.getstate(),
            "np_rng_state": np.random.RandomState(0).get_state(), "optimizer": None,
            "lr_scheduler": {"lr": np.float64(1)},
        }  # fmt: skip
        flat = {f"sequential.{layer}.{name}": x for layer, tensors in parts.items() for name, x in tensors.items()}
        write_torch(folder / rank, flat, beside)
    return run
