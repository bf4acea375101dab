"""What transformers makes of a model's folder: python -m tests.support.peers.pretrained JOB.json OUT.npz

JOB.json: "folder"; "tokens": ids [batch, n]; "prompt"; "new": tokens to add greedily; "texts" to encode. OUT.npz: the
logits, the ids that continue the prompt, the ids of the texts joined, and the version, as numbers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["USE_TF"] = "0"  # which takes seconds to load

import numpy as np
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.peers.exact import exact_logits


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    model, loading = AutoModelForCausalLM.from_pretrained(job["folder"], output_loading_info=True)
    left = {name: loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading[name]}
    assert not left, left
    model = model.float().eval()
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    prompt = tokenizer(job["prompt"], return_tensors="pt")
    grown = model.generate(**prompt, max_new_tokens=job["new"], do_sample=False)[0].tolist()
    texts = [number for text in job["texts"] for number in tokenizer(text)["input_ids"]]
    specials = [tokenizer.eos_token_id, tokenizer.pad_token_id, model.generation_config.eos_token_id]
    version = [int(part) for part in transformers.__version__.split(".")[:3]]
    length = len(prompt["input_ids"][0])
    logits = exact_logits(model, job["tokens"])
    np.savez(out, logits=logits, grown=grown[length:], texts=texts, specials=specials, version=version)


if __name__ == "__main__":
    main()
