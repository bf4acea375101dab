"""Training in PyTorch, by hand: python -m tests.support.peers.training JOB.json OUT.npz

JOB.json: "folder", a model's in Hugging Face's form to begin from, or "checkpoint", a TensorFlow checkpoint of a
GPT-Neo, with "model": keys of GPTNeoConfig; "optimizer": keys of this project's config; and "batches": a .npy file
[steps, batch, n_ctx + 1]. OUT.npz has `loss`, `nll`, `grad_norm` and `lr` [steps], and each weight at the end under its
name in torch.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.support.peers.gpt_neo import load


def initial_model(job: dict[str, Any]) -> Any:
    """The model with its weights, in float32 and with nothing dropped."""
    if "folder" in job:
        return AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()
    return load(job["checkpoint"], job["model"])


def learning_rate(o: dict[str, Any], step: int) -> float:
    """Half a cosine from lr to a tenth of it; in the warm-up, times step / warmup_steps. Steps count from 0."""
    done = min(step / o["lr_decay_end"], 1.0)
    decayed = o["lr"] * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * done)))
    return decayed * min(step / o["warmup_steps"], 1.0)


def losses(logits: torch.Tensor, labels: torch.Tensor, z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What is optimised, and the negative log-likelihood, both means over the labels."""
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return nll + z_loss * logits.logsumexp(-1).square().mean(), nll


def step(
    weights: list[torch.nn.Parameter], state: list[tuple[torch.Tensor, torch.Tensor]], lr: float, o: dict[str, Any]
) -> float:
    """Clip, then Adam without bias correction and decoupled decay; returns the gradients' norm before clipping."""
    norm = float(torch.nn.utils.clip_grad_norm_(weights, math.inf))
    scale = o["gradient_clipping"] / max(norm, o["gradient_clipping"])
    for weight, (m, v) in zip(weights, state, strict=True):
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad * scale  # an expert without tokens
        m.mul_(o["beta1"]).add_(gradient, alpha=1 - o["beta1"])
        v.mul_(o["beta2"]).addcmul_(gradient, gradient, value=1 - o["beta2"])
        change = m / (v.sqrt() + o["epsilon"])
        if weight.dim() > 1:
            change = change + o["weight_decay"] * weight
        weight.data -= lr * change
        weight.grad = None
    return norm


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    o, batches = job["optimizer"], torch.from_numpy(np.load(job["batches"]).astype(np.int64))
    model = initial_model(job)
    weights = list(model.parameters())
    state = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    rows: dict[str, list[float]] = {name: [] for name in ("loss", "nll", "grad_norm", "lr")}
    for i, tokens in enumerate(batches):
        loss, nll = losses(model(tokens[:, :-1]).logits, tokens[:, 1:], o["z_loss"])
        loss.backward()
        with torch.no_grad():
            lr = learning_rate(o, i)
            norm = step(weights, state, lr, o)
        for name, value in (("loss", loss.item()), ("nll", nll.item()), ("grad_norm", norm), ("lr", lr)):
            rows[name].append(value)
    ends = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    np.savez(out, **{name: np.array(row) for name, row in rows.items()}, **ends)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
