"""Logits of a checkpoint: python -m tests.support.peers.logits JOB.json OUT.npz

JOB.json: "checkpoint", "model": keys of GPTNeoConfig, and "tokens": a list of [batch, n] ids. OUT.npz has the logits
[batch, n, vocab] of the i-th tokens under the name i.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.peers.exact import exact_logits
from tests.support.peers.gpt_neo import load


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    model = load(job["checkpoint"], job["model"])
    found: dict[str, Any] = {str(i): exact_logits(model, tokens) for i, tokens in enumerate(job["tokens"])}
    np.savez(out, **found)


if __name__ == "__main__":
    main()
