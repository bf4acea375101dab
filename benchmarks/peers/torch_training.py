"""A training step in PyTorch, in turns with ours (benchmarks/turns.py; benchmarks/training_step.py starts it).

`--model gpt` is the compact GPT of torch_gpt.py, `--model llama` the compact Llama of torch_llama.py; `--model hf` is
Hugging Face's GPT-Neo, whose layers alternate or are all global, as ours, and `--model hf-llama` its Llama. All use
fused AdamW and gradients clipped to norm 1; on a GPU also bfloat16 autocast.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers.torch_gpt import GPT, training_step
from benchmarks.peers.torch_llama import Llama
from benchmarks.turns import take_turns


class HuggingFace(nn.Module):
    """A model of Hugging Face's with the loss that the compact ones have."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.model: nn.Module = _llama(args) if args.model == "hf-llama" else _gpt_neo(args)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.model(tokens).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def _gpt_neo(args: argparse.Namespace) -> nn.Module:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    kinds = [["global"], args.layers] if not args.window else [["global", "local"], args.layers // 2]
    config = GPTNeoConfig(
        vocab_size=args.vocab, max_position_embeddings=args.context, hidden_size=args.width,
        num_layers=args.layers, num_heads=args.heads, attention_types=[kinds], window_size=args.window or 256,
        resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0, use_cache=False,
    )  # fmt: skip
    return GPTNeoForCausalLM(config)


def _llama(args: argparse.Namespace) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=args.vocab, max_position_embeddings=args.context, hidden_size=args.width,
        num_hidden_layers=args.layers, num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
        intermediate_size=args.intermediate, rms_norm_eps=1e-5, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_step(args: argparse.Namespace) -> Callable[[], torch.Tensor]:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model: nn.Module
    sizes = (args.layers, args.width, args.heads, args.context, args.vocab)
    if args.model == "llama":
        model = Llama(*sizes, args.kv_heads, args.intermediate)
    else:
        model = GPT(*sizes) if args.model == "gpt" else HuggingFace(args)
    model = model.to(args.device)
    if args.compile:
        model = torch.compile(model)
    tokens = torch.randint(args.vocab, (args.batch, args.context + 1), device=args.device)
    return training_step(model, tokens, bfloat16=args.precision == "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=["gpt", "llama", "hf", "hf-llama"], default="gpt")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    for name in ("layers", "width", "heads", "context", "vocab", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--kv_heads", type=int, help="Llama only")
    parser.add_argument("--intermediate", type=int, help="Llama only")
    parser.add_argument("--window", type=int, default=0, help="of every second layer (hf only); 0: all are global")
    args = parser.parse_args()
    step = make_step(args)
    begin = time.perf_counter()
    step().item()
    first = time.perf_counter() - begin
    step().item()

    def block() -> float:
        begin = time.perf_counter()
        for _ in range(args.steps):
            loss = step()
        loss.item()
        return args.steps * args.batch * args.context / (time.perf_counter() - begin)

    def facts() -> dict[str, Any]:
        found: dict[str, Any] = {"first_step": first, "torch": torch.__version__}
        if args.model.startswith("hf"):
            found["transformers"] = importlib.metadata.version("transformers")
        if args.device == "cuda":
            found |= {"peak": torch.cuda.max_memory_allocated(), "device": torch.cuda.get_device_name()}
        return found

    take_turns(block, facts)


if __name__ == "__main__":
    main()
