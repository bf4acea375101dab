"""A compact GPT in plain PyTorch, the peer of our training steps.

    python -m benchmarks.peers.torch_gpt --layers 12 --width 768 --heads 12 --context 1024 --vocab 50304 --batch 16 \
        --gpus 2 [--compile]

The usual choices for speed: bfloat16 autocast over float32 weights, `scaled_dot_product_attention`, fused AdamW,
gradients clipped to norm 1, `torch.compile` on request, DistributedDataParallel on several GPUs (`--batch` is per GPU).
Prints one JSON line: tokens/s of all GPUs together (median of the blocks), peak memory of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm_1(x)).split(width, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.proj(F.gelu(self.fc(self.norm_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, context: int, vocab: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.01)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def training_step(model: nn.Module, tokens: torch.Tensor, *, bfloat16: bool = True) -> Callable[[], torch.Tensor]:
    """A function that trains on `tokens` [batch, context + 1] once and gives the loss; `bfloat16`: by autocast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> torch.Tensor:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            loss: torch.Tensor = model(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def train(rank: int, args: argparse.Namespace) -> None:
    """One GPU's process."""
    torch.cuda.set_device(rank)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model: nn.Module = GPT(args.layers, args.width, args.heads, args.context, args.vocab).cuda()
    if args.gpus > 1:
        torch.distributed.init_process_group("nccl", rank=rank, world_size=args.gpus)
        model = nn.parallel.DistributedDataParallel(model, device_ids=[rank], gradient_as_bucket_view=True)
    if args.compile:
        model = torch.compile(model)
    step = training_step(model, torch.randint(args.vocab, (args.batch, args.context + 1), device="cuda"))
    for _ in range(5):
        step()
    rates = []
    for _ in range(args.blocks):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(args.steps):
            loss = step()
        loss.item()
        torch.cuda.synchronize()
        rates.append(args.steps * args.gpus * args.batch * args.context / (time.perf_counter() - begin))
    if rank == 0:
        row = {"tokens_per_second": statistics.median(rates), "peak": torch.cuda.max_memory_allocated()}
        print(json.dumps(row), flush=True)
    if args.gpus > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sizes = {"layers": 12, "width": 768, "heads": 12, "context": 1024, "vocab": 50304, "batch": 16, "gpus": 1}
    for name, default in {**sizes, "steps": 10, "blocks": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if args.gpus == 1:
        train(0, args)
        return
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    torch.multiprocessing.spawn(train, (args,), nprocs=args.gpus)


if __name__ == "__main__":
    main()
