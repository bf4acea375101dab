"""Generation with Hugging Face's GPT-Neo, in turns with ours (benchmarks/decoding.py starts it)."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from benchmarks.turns import take_turns


def load(keys: dict[str, int], path: str) -> GPTNeoForCausalLM:
    """The model with the weights of an .npz by our names."""
    layers = keys["n_layer"]
    config = GPTNeoConfig(
        vocab_size=keys["n_vocab"], max_position_embeddings=keys["n_ctx"], hidden_size=keys["n_embd"],
        num_layers=layers, num_heads=keys["n_head"], attention_types=[[["global", "local"], layers // 2]],
    )  # fmt: skip
    model = GPTNeoForCausalLM(config).eval()
    with np.load(path) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file}
    state = {f"transformer.{name}.weight": weights[name] for name in ("wte", "wpe")}
    pairs = {"ln_f": "ln_f"}
    for i in range(layers):
        state |= {f"transformer.h.{i}.attn.attention.{x}_proj.weight": weights[f"h{i}/attn/{x}"].T for x in "qkv"}
        state[f"transformer.h.{i}.attn.attention.out_proj.weight"] = weights[f"h{i}/attn/o"].T
        state[f"transformer.h.{i}.attn.attention.out_proj.bias"] = weights[f"h{i}/attn/compute_output_bias/o_b"]
        pairs |= {f"h{i}/norm_1": f"h.{i}.ln_1", f"h{i}/norm_2": f"h.{i}.ln_2"}
        for part in ("c_fc", "c_proj"):
            ours, theirs = f"h{i}/mlp/conv1d_main/{part}", f"transformer.h.{i}.mlp.{part}"
            state |= {f"{theirs}.weight": weights[f"{ours}/kernel"].T, f"{theirs}.bias": weights[f"{ours}/bias"]}
    for ours, theirs in pairs.items():
        state |= {f"transformer.{theirs}.{x}": weights[f"{ours}/{x[0].replace('w', 'g')}"] for x in ("weight", "bias")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("bias" in name or name == "lm_head.weight" for name in missing), (missing, unexpected)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=json.loads)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    job: dict[str, Any] = args.job
    model, tokens = load(job["model"], job["weights"]), torch.tensor(job["prompts"])
    more: dict[str, Any] = {}
    if args.compile:
        model.forward = torch.compile(model.forward)
        more["cache_implementation"] = "static"
    wanted = job["tokens"]
    mask = torch.ones_like(tokens)

    @torch.inference_mode()
    def call() -> list[list[int]]:
        found = model.generate(
            tokens, attention_mask=mask, do_sample=False, max_new_tokens=wanted, min_new_tokens=wanted, pad_token_id=0,
            **more,
        )  # fmt: skip
        return found[:, tokens.shape[1] :].tolist()

    begin = time.perf_counter()
    written = call()
    facts = {"first_call": time.perf_counter() - begin, "written": written}
    facts |= {"torch": torch.__version__, "transformers": transformers.__version__}
    count = job["batch"] * (wanted if wanted > 1 else job["prompt"])

    def block() -> float:
        begin = time.perf_counter()
        call()
        return count / (time.perf_counter() - begin)

    take_turns(block, lambda: facts)


if __name__ == "__main__":
    main()
