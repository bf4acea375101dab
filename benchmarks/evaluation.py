"""Speed of lm-evaluation-harness on our checkpoints, compared with its own Hugging Face backend on the same weights.

    make peers-env && .venv-peers/bin/python -m benchmarks.evaluation [--width 256] [--layers 4] [--turns 3]

Passages in the form of LAMBADA (the last word after its context: requests of many lengths) and texts in the form of
WikiText (whole texts in rolling windows), both made from the Python sources of this interpreter; a GPT-Neo with random
weights, in float32, on this machine's cores; 16 texts at a time in both. The two take turns, so that both meet the same
conditions. Ours compiles each of its few shapes once, in the first turn, which is timed separately; the other figure is
the median of the later turns. On a busy machine, only the ratio of processor time is meaningful. Ends with the largest
difference of the log-probabilities, relative to the largest of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import lm_eval
import numpy as np
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from benchmarks.encoding import documents
from gpt_mesh.config import Config, load_config
from gpt_mesh.harness import HarnessModel
from gpt_mesh.training import report
from tests.support.corpora import make_tokenizer
from tests.support.models import enlarge_weights, make_engine
from tests.support.peers.gpt_neo import load

BATCH, N_CTX, N_VOCAB = 16, 512, 4096
END = "<|endoftext|>"
Measured = tuple[list[float], float, float]  # answers, seconds, processor seconds


def make_model(folder: Path, width: int, layers: int) -> tuple[Config, str, str]:
    """A config with its tokenizer, a checkpoint of random weights, and the tokenizer's file."""
    tokenizer = str(make_tokenizer(folder, n_vocab=N_VOCAB, texts=list(documents(2))))
    data = {"path": [str(folder / "none.tfrecords")], "n_vocab": N_VOCAB, "tokenizer_path": tokenizer}
    (folder / "dataset_configs").mkdir()
    (folder / "dataset_configs" / "none.json").write_text(json.dumps(data))
    keys = {
        "n_head": width // 64, "n_embd": width, "n_layer": layers, "n_ctx": N_CTX, "n_vocab": N_VOCAB, "lr": 1e-3,
        "attention_types": [[["global", "local"], layers // 2]], "train_batch_size": BATCH, "train_steps": 1,
        "datasets": ["none"], "model_path": str(folder / "run"),
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(keys))
    config = load_config(str(folder / "model.json"))
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine, scale=0.05)
    report.prepare_directory(config)
    report.write_config(config)
    return config, engine.save(str(folder / "run"), 1, {}), tokenizer


def hugging_face(config: Config, checkpoint: str, tokenizer_file: str) -> HFLM:
    """The harness's own backend with the checkpoint's weights."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, eos_token=END, bos_token=END, pad_token=END)
    keys = {
        "vocab_size": N_VOCAB, "max_position_embeddings": N_CTX, "hidden_size": config.model.n_embd,
        "num_layers": config.model.n_layer, "num_heads": config.model.n_head,
        "attention_types": [[list(config.model.attention_types), 1]],
        "window_size": config.model.local_attention_radius,
    }  # fmt: skip
    return HFLM(pretrained=load(checkpoint, keys).eval(), tokenizer=tokenizer, batch_size=BATCH, device="cpu")


def requests() -> tuple[list[Instance], list[Instance]]:
    """96 passages with their last words, and 6 texts of about 4 kB."""
    draw, passages, texts = random.Random(1), list[Instance](), list[Instance]()
    for text in documents(2):
        words = text.split()[: draw.randrange(10, 60)]
        if len(passages) < 96 and len(words) > 8:
            arguments: Any = (" ".join(words[:-1]), f" {words[-1]}")
            passages.append(Instance("loglikelihood", {}, arguments, len(passages)))
        elif len(texts) < 6:
            rolling: Any = (text[:4096],)
            texts.append(Instance("loglikelihood_rolling", {}, rolling, len(texts)))
    return passages, texts


def timed(ask: Callable[[], list[Any]]) -> Measured:
    begin, used = time.perf_counter(), time.process_time()
    answers = [answer[0] if isinstance(answer, tuple) else answer for answer in ask()]
    return answers, time.perf_counter() - begin, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as name:
        config, checkpoint, tokenizer_file = make_model(Path(name), arguments.width, arguments.layers)
        theirs = hugging_face(config, checkpoint, tokenizer_file)
        ours = HarnessModel(checkpoint, batch_size=BATCH)
        kinds = dict(zip(("passages", "texts"), requests(), strict=True))
        found: dict[tuple[str, str], list[Measured]] = {}
        for _ in range(arguments.turns + 1):
            for kind, asked in kinds.items():
                for side, lm in (("Hugging Face", theirs), ("ours", ours)):
                    method = lm.loglikelihood if kind == "passages" else lm.loglikelihood_rolling
                    found.setdefault((kind, side), []).append(timed(lambda m=method, a=asked: m(a)))  # type: ignore[misc]
    versions = f"lm_eval {lm_eval.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"\n{cores} cores, load {os.getloadavg()[0]:.1f}; {versions}")
    print(f"{'':10}{'backend':14}{'first turn s':>14}{'seconds':>10}{'processor s':>13}")
    for (kind, side), turns in found.items():
        seconds, used = (statistics.median(values) for values in list(zip(*turns[1:], strict=True))[1:])
        print(f"{kind:10}{side:14}{turns[0][1]:14.1f}{seconds:10.2f}{used:13.2f}")
    for kind in kinds:
        mine, other = (np.array(found[kind, side][0][0]) for side in ("ours", "Hugging Face"))
        used = [statistics.median(turn[2] for turn in found[kind, side][1:]) for side in ("Hugging Face", "ours")]
        apart = np.abs(mine - other).max() / np.abs(other).max()
        print(f"{kind}: {used[0] / used[1]:.2f} times as fast by processor time; answers differ by {apart:.1e}")


if __name__ == "__main__":
    main()
