"""Models of any architecture in transformers: python -m tests.support.peers.families JOB.json OUT.npz

JOB.json: "models", a list of objects with "folder"; "tokens": ids [batch, n]; "prompt": ids; "new": tokens to add
greedily; and, for a model of random weights that is to be written there, "config": keys of its config.json with
"model_type", and "scale" of the weights. "defaults": model types. OUT.npz has for the i-th model "i/logits" and
"i/grown", and for each model type "defaults/TYPE": the config without arguments, as JSON; and "version".
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
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.peers.exact import exact_logits


def made_up(job: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**job["config"])).eval()
    for name, weight in model.named_parameters():
        is_gain = ("norm" in name or ".ln_" in name) and name.endswith("weight")
        weight.data.normal_(1.0 if is_gain else 0.0, job["scale"])
    model.save_pretrained(job["folder"])


def loaded(folder: str) -> Any:
    config, more = AutoConfig.from_pretrained(folder), {}
    if transformers.__version__ >= "5" and hasattr(config, "num_local_experts"):
        more["experts_implementation"] = "eager"  # the usual one knows no float64
    if not getattr(config, "scale_attn_weights", True):
        more["attn_implementation"] = "eager"  # the usual one of version 4 scales all the same
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **more)
    left = {name: loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading[name]}
    assert not left, (folder, left)
    return model.eval()


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    found: dict[str, Any] = {"version": int(transformers.__version__.split(".")[0])}
    for kind in job.get("defaults", []):
        found[f"defaults/{kind}"] = json.dumps(AutoConfig.for_model(kind).to_dict(), default=str)
    for number, each in enumerate(job.get("models", [])):
        if "config" in each:
            made_up(each)
        model, prompt = loaded(each["folder"]), torch.tensor([each["prompt"]])
        settings = {"max_new_tokens": each["new"], "min_new_tokens": each["new"], "do_sample": False}
        grown = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        found[f"{number}/grown"] = grown[0, len(each["prompt"]) :].numpy()
        found[f"{number}/logits"] = exact_logits(model, each["tokens"])
    np.savez(out, **found)


if __name__ == "__main__":
    main()
