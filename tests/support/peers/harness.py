"""lm-evaluation-harness with our backend and its own: python -m tests.support.peers.harness JOB.json OUT.npz

JOB.json: "config" (a run's config), "checkpoint", "model": keys of GPTNeoConfig,
"tokenizer", "tasks" (a folder of the harness's task files), "names" (of those to run) and "files" (of our own tasks).
OUT.npz has one array of bytes, `answer`: JSON with `ours` and `theirs`, each with `metrics` and `samples` by task, and
`alone`, what our own tasks give, `mistakes`, what is said to some wrong arguments, `without_room`, what is said where
nothing is left for a context, and `warnings` and `no_warnings`, what is logged about long and short contexts.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import lm_eval
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

from gpt_mesh import api
from gpt_mesh.config import load_config
from gpt_mesh.errors import InputError
from gpt_mesh.harness import HarnessModel  # which registers "gpt_mesh"
from gpt_mesh.storage.progress import log
from tests.support.peers.gpt_neo import load

BATCH = 3  # not a divisor of what there is


def theirs(job: dict[str, Any]) -> HFLM:
    """The harness's Hugging Face backend with the checkpoint's weights."""
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["tokenizer"], eos_token=end, bos_token=end, pad_token=end)
    model = load(job["checkpoint"], job["model"]).eval()
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device="cpu")


def run(model: Any, job: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Metrics without the bootstrapped errors, which are random, and what the model answered to each request."""
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=job["names"],
        task_manager=TaskManager(include_path=job["tasks"], include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **arguments,
    )
    samples = {name: [row["filtered_resps"] for row in rows] for name, rows in found["samples"].items()}
    return {"metrics": found["results"], "samples": samples}


def refusal(**arguments: str) -> str:
    try:
        HarnessModel.create_from_arg_obj(arguments, {"batch_size": BATCH})
    except InputError as error:
        return str(error)
    raise AssertionError(arguments)


def without_room(model: HarnessModel, *given: int) -> list[str]:
    """What is said to each `max_gen_toks`; 0: none is given."""
    said = []
    for count in given:
        arguments = {"until": ["\n"], **({"max_gen_toks": count} if count else {})}
        try:
            model.generate_until([Instance("generate_until", {}, ("a question", arguments), 0)])
        except InputError as error:
            said.append(str(error))
    return said


def warnings(model: HarnessModel, contexts: list[str], count: int) -> list[str]:
    """What is logged when these contexts are continued by `count` tokens, and when a word is scored after them."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    arguments = {"until": ["\n"], "max_gen_toks": count}
    model.generate_until([Instance("generate_until", {}, (text, arguments), 0) for text in contexts])
    model.loglikelihood([Instance("loglikelihood", {}, (text, " list"), 0) for text in contexts])
    log.removeHandler(handler)
    return lines


def main() -> None:
    job_file, out = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    config = load_config(job["config"])
    ours = {"config": job["checkpoint"]}
    model = HarnessModel(config=job["checkpoint"], batch_size=BATCH)
    answer = {
        "theirs": run(theirs(job), job),
        "ours": run("gpt_mesh", job, model_args=ours, batch_size=BATCH),
        "alone": {
            name: api.evaluate(config, checkpoint=job["checkpoint"], task=name, file=file)
            for name, file in job["files"].items()
        },
        "mistakes": [refusal(**wrong) for wrong in ({}, {"config": "nowhere"}, {"config": "demo", "dtype": "float"})],
        "without_room": without_room(model, 0, job["model"]["max_position_embeddings"]),
        "warnings": warnings(model, ["a", "list of " * 200], 12),
        "no_warnings": warnings(model, ["a", "a list"], 12),
    }
    np.savez(out, answer=np.frombuffer(json.dumps(answer).encode(), np.uint8))


if __name__ == "__main__":
    main()
