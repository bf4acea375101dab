"""Generation with Hugging Face's GPT-Neo or Llama, in turns with ours (benchmarks/decoding.py starts it)."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.turns import take_turns


def load(keys: dict[str, Any], path: str) -> PreTrainedModel:
    """The model with the weights of an .npz by our names."""
    with np.load(path) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file}
    return _llama(keys, weights) if "num_kv_heads" in keys else _gpt_neo(keys, weights)


def _llama(keys: dict[str, Any], weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=keys["n_vocab"], max_position_embeddings=keys["n_ctx"], hidden_size=keys["n_embd"],
        num_hidden_layers=keys["n_layer"], num_attention_heads=keys["n_head"],
        num_key_value_heads=keys["num_kv_heads"], intermediate_size=keys["intermediate_size"], rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )  # fmt: skip
    state = {"model.embed_tokens.weight": weights["wte"], "model.norm.weight": weights["ln_f/g"]}
    matrices = {"self_attn.o_proj": "attn/o", **{f"self_attn.{x}_proj": f"attn/{x}" for x in "qkv"}}
    matrices |= {f"mlp.{theirs}_proj": f"mlp/conv1d_main/{ours}/kernel" for theirs, ours in
                 (("up", "c_fc"), ("gate", "c_gate"), ("down", "c_proj"))}  # fmt: skip
    for i in range(keys["n_layer"]):
        layer = f"model.layers.{i}"
        state |= {f"{layer}.{theirs}.weight": weights[f"h{i}/{ours}"].T for theirs, ours in matrices.items()}
        state[f"{layer}.input_layernorm.weight"] = weights[f"h{i}/norm_1/g"]
        state[f"{layer}.post_attention_layernorm.weight"] = weights[f"h{i}/norm_2/g"]
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and missing == ["lm_head.weight"], (missing, unexpected)
    return model


def _gpt_neo(keys: dict[str, Any], weights: dict[str, torch.Tensor]) -> GPTNeoForCausalLM:
    layers = keys["n_layer"]
    config = GPTNeoConfig(
        vocab_size=keys["n_vocab"], max_position_embeddings=keys["n_ctx"], hidden_size=keys["n_embd"],
        num_layers=layers, num_heads=keys["n_head"], attention_types=keys["attention_types"],
    )  # fmt: skip
    model = GPTNeoForCausalLM(config).eval()
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
