"""transformers' mixtures of experts: python -m tests.support.peers.experts JOB.json OUT.npz

JOB.json: "family" (mixtral or olmoe), "choices" of a token, "normalised", "x" and "pull" [batch, sequence, features],
and "weights", by name: "gating/kernel" [features, experts], "experts/wi" and "experts/wg" [experts, features, hidden],
"experts/wo" [experts, hidden, features]. OUT.npz has the output "y", the balance loss "loss", and the gradients of the
sum of y times pull plus that loss, as "d/x" and "d/<weight>".
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
from transformers import MixtralConfig, OlmoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

# By family: the linear layers of an expert for our wi, wg and wo.
PARTS = {"mixtral": ("w3", "w1", "w2"), "olmoe": ("up_proj", "gate_proj", "down_proj")}


def block_of(job: dict[str, Any]) -> torch.nn.Module:
    """The layer, with the job's weights, in float64."""
    weights = {name: torch.tensor(value, dtype=torch.float64) for name, value in job["weights"].items()}
    experts, features, hidden = weights["experts/wi"].shape
    sizes = {"hidden_size": features, "intermediate_size": hidden, "num_experts_per_tok": job["choices"]}
    if job["family"] == "mixtral":
        block = MixtralSparseMoeBlock(MixtralConfig(num_local_experts=experts, **sizes))
    else:
        block = OlmoeSparseMoeBlock(OlmoeConfig(num_experts=experts, norm_topk_prob=job["normalised"], **sizes))
    block = block.double()
    with torch.no_grad():
        block.gate.weight.copy_(weights["gating/kernel"].T)
        for number, expert in enumerate(block.experts):
            for part, name in zip(PARTS[job["family"]], ("wi", "wg", "wo"), strict=True):
                getattr(expert, part).weight.copy_(weights[f"experts/{name}"][number].T)
    return block


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    block = block_of(job)
    x = torch.tensor(job["x"], dtype=torch.float64, requires_grad=True)
    y, logits = block(x)
    loss = load_balancing_loss_func((logits,), logits.shape[-1], job["choices"])
    (torch.sum(y * torch.tensor(job["pull"], dtype=torch.float64)) + loss).backward()
    found = {"y": y, "loss": loss, "d/x": x.grad, "d/gating/kernel": block.gate.weight.grad.T}
    for part, name in zip(PARTS[job["family"]], ("wi", "wg", "wo"), strict=True):
        gradients = [getattr(expert, part).weight.grad for expert in block.experts]
        shape = getattr(block.experts[0], part).weight.shape
        # An expert that no token chose has none.
        found[f"d/experts/{name}"] = torch.stack([(torch.zeros(shape) if g is None else g).T for g in gradients])
    np.savez(out, **{name: value.detach().numpy() for name, value in found.items()})


if __name__ == "__main__":
    main()
