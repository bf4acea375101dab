"""Converts a Hugging Face model to a checkpoint and configs, one weight at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh.config import load_config
from gpt_mesh.data.dataset_file import relative_to_config
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.tokenizer_folders import model_ends
from gpt_mesh.engine import checkpoint_stream, checkpoints
from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop import tokenizer_files
from gpt_mesh.interop.weights import HuggingFaceWeights
from gpt_mesh.storage import files as storage
from gpt_mesh.storage import strict_json
from gpt_mesh.storage.lease import lease
from gpt_mesh.storage.progress import BYTES, Progress, log
from gpt_mesh.training import report

# For fine-tuning: what a config needs and a model's folder does not say.
_TRAINING = {
    "lr": 5e-5,
    "lr_decay": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
    "train_batch_size": 8,
    "train_steps": 1000,
    "recompute_grad": True,
    "iterations": 10,
}

IMPORTING = ".importing"  # folder in `model_path` for a checkpoint that is not complete


@dataclass(frozen=True)
class Imported:
    """What an import has written: paths."""

    checkpoint: str
    config: str
    dataset_config: str
    tokenizer: str


def import_model(
    folder: str,
    name: str,
    *,
    config_dir: str = "configs",
    model_path: str | None = None,
    tokenizer: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """Write `<config_dir>/<name>.json`, `<config_dir>/dataset_configs/<name>.json`, and in `model_path` a checkpoint of
    step 0, the tokenizer, and copies of the configs, as in a run's directory.

    At most a gigabyte of weights, or one larger weight, is in memory at a time.

    Args:
        folder: with config.json, weight files and tokenizer files.
        model_path: default: `runs/<name>`.
        tokenizer: a file or folder, in place of the folder's own.
        overwrite: replace existing files.

    Raises:
        InputError: the folder cannot be used, or something would be replaced.
    """
    model_path = model_path or os.path.join("runs", name)
    config = os.path.join(config_dir, f"{name}.json")
    dataset_config = os.path.join(config_dir, "dataset_configs", f"{name}.json")
    if not overwrite:
        _refuse_to_replace(config, dataset_config, model_path)
    weights = HuggingFaceWeights(folder)
    encoder = load_encoder(tokenizer) if tokenizer else weights.tokenizer
    if encoder is None:
        raise InputError(
            f"{shown(folder)}: has no tokenizer (tokenizer.json, or vocab.json and merges.txt); name one with "
            "--tokenizer"
        )
    ends = tuple(dict.fromkeys([*model_ends(folder), *encoder.eos_ids]))
    tokenizer_files.check(encoder, weights.architecture.n_vocab, ends, weights.settings)
    for needed in (model_path, os.path.dirname(dataset_config)):
        storage.make_folder(needed)
    try:
        with lease(os.path.join(model_path, ".run.lock"), "a run"):
            new = _write_checkpoint(weights, model_path)
            # Everything has been read and checked. Now delete the old checkpoint, replace the configs, and move the new
            # checkpoint in last, so that a kill never leaves weights with the config of another model.
            if overwrite:
                checkpoints.delete_all(model_path)
            kept = os.path.join(model_path, "tokenizer")
            tokenizer_files.keep(encoder, encoder.source, kept)
            dataset = _dataset(weights, name, encoder, ends, relative_to_config(kept, dataset_config))
            _write(dataset_config, dataset)
            _write(config, _config(weights, name, model_path))
            report.write_config(load_config(config))
            checkpoint = _move_in(new, model_path)
    except (tf.errors.OpError, OSError) as error:
        raise InputError(
            f"{shown(model_path)}: cannot be written ({storage.reason(error)}); make room, or name another --model_path"
        ) from None
    return Imported(checkpoint, config, dataset_config, kept)


def _refuse_to_replace(config: str, dataset_config: str, model_path: str) -> None:
    there = [path for path in (config, dataset_config) if os.path.exists(path)]
    if there or checkpoints.steps(model_path):
        what = shown(there[0]) if there else f"{shown(model_path)}: a run's checkpoints are there; it"
        raise InputError(f"{what} would be replaced: give another --name, or add --overwrite")


def _write_checkpoint(weights: HuggingFaceWeights, model_path: str) -> str:
    """Write the checkpoint of step 0 into a folder of its own in `model_path`; returns that folder."""
    new = os.path.join(model_path, IMPORTING)
    if storage.is_folder(new):  # a killed import left it
        storage.remove_folder(new)
    storage.make_folder(new)
    try:
        checkpoint_stream.write(new, 0, _stream(weights), {"init_from": os.path.abspath(weights.source)})
    except BaseException:
        storage.remove_folder(new)
        raise
    return new


def _move_in(new: str, model_path: str) -> str:
    """Move a checkpoint of step 0 into the run's folder; returns its path."""
    # The index file makes it visible, and the file `checkpoint` names it.
    for name in sorted(storage.list_folder(new), key=lambda name: (name == "checkpoint", name.endswith(".index"))):
        storage.move(os.path.join(new, name), os.path.join(model_path, name))
    storage.sync(model_path)
    storage.remove_folder(new)
    return os.path.join(model_path, "model.ckpt-0")


def _stream(weights: HuggingFaceWeights) -> Iterator[tuple[str, NDArray]]:
    """All weights, with a progress bar on standard error."""
    sizes = {name: 4 * math.prod(shape) for name, shape in weights.shapes.items()}
    with Progress(sum(sizes.values()), f"importing {weights.source}", BYTES) as progress:
        for name, size in sizes.items():
            yield name, weights.read(name)
            progress.update(size)


def _dataset(
    weights: HuggingFaceWeights, name: str, encoder: Encoder, ends: tuple[int, ...], tokenizer: str
) -> dict[str, Any]:
    values = {
        "path": f"datasets/{name}/train_*.tfrecords",
        "eval_path": "",
        "n_vocab": weights.architecture.n_vocab,  # all rows, which an export keeps
        "tokenizer_path": tokenizer,
        "tokenizer_is_pretrained": False,
        "bos_id": encoder.bos_id,
        "eos_id": ends[0] if ends else None,
        "stop_token_ids": list(ends[1:]) or None,
        "padding_id": encoder.padding_id,
    }
    return {key: value for key, value in values.items() if value is not None}


def _config(weights: HuggingFaceWeights, name: str, model_path: str) -> dict[str, Any]:
    model = weights.architecture
    return {
        **{name: value for name, value in weights.keys.items() if value is not None},  # null is each one's default
        **_TRAINING,
        **({"objective": "reward"} if model.reward_head else {}),
        "tokens_per_mb_per_replica": model.n_ctx,
        "datasets": [[name, 10, "documents_random", 1.0]],
        "model_path": model_path,
    }


def _write(path: str, values: dict[str, Any]) -> None:
    try:
        strict_json.write(path, values)
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be written: {storage.reason(error)}") from None
    log.info("wrote %s", shown(path))
