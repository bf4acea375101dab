"""A workspace as a user has one (tokenizer, data, configs), the command line run in it, and one run for all tests."""

from __future__ import annotations

import email
import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.engine import checkpoint_stream
from gpt_mesh.interop.weights import weight_sizes
from gpt_mesh.storage.progress import log
from tests.support.corpora import Documents, add_dataset, make_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
N_VOCAB = 320
N_CTX = 32
Run = Callable[..., tuple[int, str, str]]  # main.py's flags to its status, standard output and standard error
TIMING = ("tokens_per_second", "mfu")  # what two equal runs may differ in

# Small enough that a run costs little more than starting TensorFlow and building one step.
TINY = {
    "n_head": 2,
    "n_embd": 32,
    "n_layer": 2,
    "n_ctx": N_CTX,
    "n_vocab": N_VOCAB,
    "attention_types": [[["global", "local"], 1]],
    "local_attention_radius": 8,
    "embed_dropout": 0.1,
    "lr": 0.003,
    "warmup_steps": 4,
    "weight_decay": 0.1,
    "train_batch_size": 4,
    "train_steps": 12,
    "iterations": 3,
    "datasets": [["tiny", 2, "documents_random", 1.0]],
}


# What to add where not even two kinds of layers are needed.
ONE_LAYER = {"n_layer": 1, "attention_types": [[["global"], 1]]}


@dataclass(frozen=True)
class Workspace:
    """A folder with a tokenizer, the dataset `tiny` and model configs, which are added as tests need them."""

    root: Path

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer" / "byte-level-bpe.tokenizer.json"

    def config(self, name: str, **keys: Any) -> Path:
        """A model config, `name`.json; its run is the folder of that name. keys: replace those of TINY."""
        path = self.root / f"{name}.json"
        path.write_text(json.dumps({**TINY, "model_path": str(self.root / name), **keys}))
        return path

    def dataset(self, name: str, documents: Documents | None, **keys: Any) -> Path:
        """Another dataset, with the tokenizer of this workspace unless keys say otherwise."""
        given = {"n_vocab": N_VOCAB, "tokenizer_path": str(self.tokenizer), **keys}
        return add_dataset(self.root, name, documents, **given)

    def start(self, *flags: object, cached: bool = True, **popen: Any) -> subprocess.Popen[str]:
        """main.py in a process of its own. cached: take what such processes compiled before, here, from disk."""
        environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "TF_XLA_FLAGS")}
        if cached:
            folder = f"--tf_xla_persistent_cache_directory={self.root / 'xla'}"
            environment["TF_XLA_FLAGS"] = f"{folder} --tf_xla_persistent_cache_device_types=CPU"
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
        command = [sys.executable, str(REPOSITORY / "main.py"), *map(str, flags)]
        return subprocess.Popen(command, text=True, env=environment, **given)

    def run(self, *flags: object, **popen: Any) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        with self.start(*flags, **popen) as process:
            out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def make_workspace(root: Path) -> Workspace:
    """A workspace over some files of Python's own library."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(email.__file__).parent.glob("*.py"))]
    workspace = Workspace(root)
    encoder = load_encoder(str(make_tokenizer(root / "tokenizer", n_vocab=N_VOCAB, texts=texts)))
    documents = encoder.encode_batch(texts)
    workspace.dataset("tiny", documents[:-2], held_out=[document[:2000] for document in documents[-2:]], files=2)
    return workspace


@dataclass(frozen=True)
class Trained:
    """A run of 120 steps without an interruption, with evaluation and samples every 40. Tests leave it as it is."""

    workspace: Workspace
    config: Path
    directory: Path
    cwd: Path
    process: subprocess.CompletedProcess[str]


STEPS, STEPS_PER_CHECKPOINT = 120, 40


def shared_workspace(factory: pytest.TempPathFactory) -> Workspace:
    """The one that all tests of a session share; what a test adds to it has a name of its own."""
    return _workspace(factory.getbasetemp())


def trained_run(factory: pytest.TempPathFactory) -> Trained:
    """Trained once a session, by the command line, from an empty working directory."""
    return _trained(factory.getbasetemp())


@functools.cache
def _workspace(temporary: Path) -> Workspace:
    return make_workspace(temporary / "workspace")


@functools.cache
def _trained(temporary: Path) -> Trained:
    workspace = _workspace(temporary)
    config = workspace.config("straight", train_steps=STEPS, eval_steps=2, predict_steps=1, predict_max_steps=8)
    cwd = temporary / "elsewhere"
    cwd.mkdir()
    process = workspace.run("--model", config, "--steps_per_checkpoint", STEPS_PER_CHECKPOINT, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return Trained(workspace, config, workspace.root / "straight", cwd, process)


@contextmanager
def logged() -> Iterator[list[str]]:
    """What the program logs within it, in this process."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    messages: list[str] = []
    handler, level = Keep(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def printed(out: str) -> dict[str, float]:
    """The step and the values of the table that --eval prints for one task, by metric."""
    found: dict[str, float] = {}
    for line in out.splitlines()[1:]:
        words = line.replace(",", "").split()
        if words[0].isdecimal():  # the first line of a task
            found["step"] = float(words[0])
            words = words[2:]
        found[words[0]] = float(words[1])
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl or eval.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(directory: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without what two equal runs may differ in."""
    return [
        {name: value for name, value in row.items() if name not in TIMING} for row in rows(directory / "metrics.jsonl")
    ]


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every variable in a checkpoint."""
    reader = tf.train.load_checkpoint(str(checkpoint))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def random_checkpoint(directory: Path, config: Config, *, step: int = 0, **more: np.ndarray) -> str:
    """A checkpoint of random weights for a config, written without a graph of it; returns its path.

    more: further variables, or others in place of weights, by their names without `gpt2/`.
    """
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(size).astype(np.float32) for name, size in weight_sizes(config.model).items()}
    arrays |= {f"gpt2/{name}": array for name, array in more.items()}
    directory.mkdir(parents=True, exist_ok=True)
    return checkpoint_stream.write(str(directory), step, arrays.items(), {})


def different(first: Path, second: Path) -> Sequence[str]:
    """Variables whose bits differ between two checkpoints, or that only one has."""
    a, b = weights(first), weights(second)
    return sorted({*a} ^ {*b}) + sorted(name for name in {*a} & {*b} if a[name].tobytes() != b[name].tobytes())
