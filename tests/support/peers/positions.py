"""transformers' rotary positions and ALiBi: python -m tests.support.peers.positions JOB.json OUT.npz

JOB.json: "models", a list of objects with "n_ctx", "head_size", "base", "share", "interleaved" and "scaling", and "x"
[positions, features]; "heads", a list of numbers of heads. OUT.npz has for the i-th model the frequencies ("i/turns"),
what rotated features are multiplied by ("i/magnitude") and x rotated ("i/rotated"), and for each number of heads the
slopes of ALiBi ("alibi/n").
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["USE_TF"] = "0"  # which takes seconds to load

import numpy as np
import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as rotate_pairs
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half


def config_of(model: dict[str, Any]) -> LlamaConfig:
    """The context of `dynamic` is max_position_embeddings there, where longer sequences are no mistake."""
    scaling = dict(model["scaling"] or {"rope_type": "default"})
    context = model["n_ctx"]
    if scaling["rope_type"] == "dynamic":
        context = scaling.pop("original_max_position_embeddings", context)
    sizes = {"hidden_size": 2 * model["head_size"], "num_attention_heads": 2, "head_dim": model["head_size"]}
    rope = {"rope_theta": model["base"], "partial_rotary_factor": model["share"]}
    if transformers.__version__ < "5":
        return LlamaConfig(max_position_embeddings=context, rope_scaling=scaling, **sizes, **rope)
    return LlamaConfig(max_position_embeddings=context, rope_parameters={**rope, **scaling}, **sizes)


def turns_of(model: dict[str, Any]) -> tuple[torch.Tensor, float]:
    config = config_of(model)
    if not model["scaling"]:
        rotary = LlamaRotaryEmbedding(config)
        count = int(model["head_size"] * model["share"]) // 2
        turns = rotary.inv_freq  # version 5 gives those of the whole head for a model without scaling
        if len(turns) != count:
            turns = model["base"] ** (-torch.arange(count) / count)
        return turns, rotary.attention_scaling
    turns, magnitude = ROPE_INIT_FUNCTIONS[model["scaling"]["rope_type"]](config, "cpu", seq_len=model["n_ctx"])
    return turns, magnitude


def rotated(model: dict[str, Any], turns: torch.Tensor, magnitude: float) -> torch.Tensor:
    x = torch.tensor(model["x"])
    whole = torch.arange(len(x)).float()[:, None] * turns
    sin, cos = torch.sin(whole) * magnitude, torch.cos(whole) * magnitude
    part, rest = x[:, : 2 * len(turns)], x[:, 2 * len(turns) :]
    if model["interleaved"]:
        found = rotate_pairs(part[None, :, None], sin[None], cos[None])[0, :, 0]
    else:
        found = part * torch.cat([cos, cos], -1) + rotate_half(part) * torch.cat([sin, sin], -1)
    return torch.cat([found, rest], -1)


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    found: dict[str, Any] = {"version": np.array(int(transformers.__version__.split(".")[0]))}
    for number, model in enumerate(job["models"]):
        turns, magnitude = turns_of(model)
        found[f"{number}/turns"], found[f"{number}/magnitude"] = turns.numpy(), np.array(magnitude)
        found[f"{number}/rotated"] = rotated(model, turns, magnitude).numpy()
    for heads in job["heads"]:
        biases = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)
        found[f"alibi/{heads}"] = biases[:, 0, 1].numpy()
    np.savez(out, **found)


if __name__ == "__main__":
    main()
