"""Write GPT-Neos of random weights as transformers does: python -m tests.support.peers.made_up JOB.json OUT.npz

JOB.json: "folder", "model": keys of GPTNeoConfig, "form": "safetensors", "shards" or "bin", "dtype", and "tokens":
ids [batch, n]. OUT.npz: the logits.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["USE_TF"] = "0"  # which takes seconds to load

import numpy as np
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from tests.support.peers.exact import exact_logits


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(GPTNeoConfig(**job["model"])).eval()
    for name, weight in model.named_parameters():
        mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        weight.data.normal_(mean, job.get("scale", 0.15))
    model = model.to(getattr(torch, job.get("dtype", "float32")))
    if job["form"] == "bin":
        Path(job["folder"]).mkdir(parents=True)
        masks = {f"transformer.h.{i}.attn.attention.bias": torch.ones(1, 1, 4, 4).bool() for i in range(2)}
        torch.save(model.state_dict() | masks, Path(job["folder"]) / "pytorch_model.bin")
        model.config.architectures = ["GPTNeoForCausalLM"]
        model.config.save_pretrained(job["folder"])
    else:
        model.save_pretrained(job["folder"], max_shard_size="20kB" if job["form"] == "shards" else "1GB")
    np.savez(out, logits=exact_logits(model, job["tokens"]))


if __name__ == "__main__":
    main()
