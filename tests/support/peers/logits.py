"""Logits of a checkpoint: python -m tests.support.peers.logits JOB.json OUT.npz

JOB.json: "checkpoint", "model": keys of GPTNeoConfig, and "tokens": a list of [batch, n] ids. OUT.npz has the logits
[batch, n, vocab] of the i-th tokens under the name i. They are computed in float64, one thread, so that what is
compared with them has the rounding of one side only, and this side's is the same each time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from tests.support.peers.gpt_neo import load


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    torch.set_num_threads(1)
    model = load(job["checkpoint"], job["model"]).eval().double()
    with torch.no_grad():
        found = {str(i): model(torch.tensor(tokens)).logits.numpy() for i, tokens in enumerate(job["tokens"])}
    np.savez(out, **found)


if __name__ == "__main__":
    main()
