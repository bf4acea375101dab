"""The families of models, and how a loss curve of each is made.

Text: the beginning of Lewis Carroll's "Alice's Adventures in Wonderland" (1865), one token a byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_mesh.engine.engine import DeviceEngine
from tests.support.models import LLAMA, make_engine, tiny_config, unoptimised_graphs

HERE = Path(__file__).parent
STEPS, EVERY = 24, 4  # steps trained, and how many pass from one stored loss to the next
N_CTX, ROWS = 32, 4

BASE: dict[str, Any] = {
    "n_head": 2,
    "n_embd": 32,
    "n_ctx": N_CTX,
    "n_vocab": 128,
    "train_batch_size": ROWS,
    "attention_types": [[["global", "local"], 1]],
    "lr": 0.01,
    "warmup_steps": 4,
    "train_steps": STEPS,
    "weight_decay": 1.0,
}
MIXTURE = {"moe_num_experts": 4, "moe_loss_coef": 0.1, "moe_use_second_place_loss": True, "moe_dropout_rate": 0.1}
FAMILIES: dict[str, dict[str, Any]] = {
    "global, local": {},
    "dropout": {"embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1},
    "linear": {"attention_types": [[["linear"], 2]]},
    "none": {"attention_types": [[["global", "none"], 1]]},
    "mixture": {"moe_layers": [1], "moe_params": MIXTURE},
    "masked": {"mlm_training": True, "mlm_mask_id": 3, "mlm_mask_prob": 0.3},
    "rotary": {"rotary_emb": True},
    "axial": {"axial_pos_emb": [4, 8]},
    "memory keys": {"num_mem_kv": 4},
    "glu, macaron, rezero, shared": {"mlp_glu": True, "macaron": True, "rezero": True, "share_parameters": True},
    "scalenorm, untied": {"scalenorm": True, "no_weight_tie": True, "scale_by_in": True, "scale_by_depth": False},
    "llama": LLAMA,
    "parallel, embedding norm": {
        "gpt_j_residual": True,
        "gpt_j_tied": True,
        "embed_norm": True,
        "lm_head_bias": True,
        "activation_function": "gelu_exact",
    },
    "norms around, bounded logits": {
        "norm": "rmsnorm",
        "norm_placement": "both",
        "embedding_scale": 5.0,
        "final_logit_softcapping": 10.0,
    },
    "entmax": {"entmax_loss": True},
    "adafactor": {"opt_name": "adafactor", "lr": 0.1},
    "bfloat16": {"precision": "bfloat16"},
}
# The rest is slow.
QUICK = ("global, local", "mixture", "masked")


def batch(step: int) -> np.ndarray:
    """int32 [ROWS, N_CTX + 1]: windows that go through the text in strides, and begin again at its start."""
    text = np.frombuffer((HERE / "text.txt").read_bytes(), np.uint8)
    starts = (np.arange(ROWS) + step * ROWS) * 41 % (len(text) - N_CTX)
    return text[starts[:, None] + np.arange(N_CTX + 1)].astype(np.int32)


def curve(family: str, **keys: Any) -> list[float]:
    """Losses of steps 0, EVERY, 2 EVERY …, and the last. keys: replace those of the family."""
    with unoptimised_graphs():
        engine = make_engine(tiny_config(**{**BASE, **FAMILIES[family], **keys}), compiled=False)
        return trained(engine)


def trained(engine: DeviceEngine) -> list[float]:
    """Of an engine that has not trained yet."""
    losses = [float(engine.train_step(batch(step))["loss"]) for step in range(STEPS)]
    return [*losses[::EVERY], losses[-1]]


def stored() -> Mapping[str, list[float]]:
    """What `tests.golden.write` wrote."""
    found: dict[str, list[float]] = json.loads((HERE / "curves.json").read_text())
    return found
