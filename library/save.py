"""Copies a trained model into a folder of its own."""

from __future__ import annotations

import os

from gpt_mesh.config import Config, DatasetConfig, replace
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.interop import tokenizer_files
from gpt_mesh.storage import files, strict_json
from gpt_mesh.training import report


def save(config: Config, checkpoint: str, directory: str) -> str:
    """Copy a checkpoint, its config and its tokenizers into a directory, which is then a run of its own.

    Returns:
        The path of the checkpoint there.

    Raises:
        InputError: the directory holds something else, is used by another process, or cannot be written.
    """
    if os.path.abspath(directory) == os.path.abspath(config.training.model_path):
        raise InputError(f"{directory}: is the run's own directory; name another one to copy the model to")
    if files.list_folder(directory) and not files.exists(os.path.join(directory, "config.json")):
        raise InputError(f"{directory}: is not empty and holds no model; name a new directory")
    target = replace(config, model_path=directory)
    with report.file_errors_explained(target), report.claimed(target):
        checkpoints.delete_all(directory)
        report.write_config(target)
        for use in config.data.datasets:
            _own_tokenizer(use.dataset, directory, os.path.join(directory, "dataset_configs", f"{use.id}.json"))
        return checkpoints.copy(checkpoint, directory)


def _own_tokenizer(dataset: DatasetConfig, directory: str, path: str) -> None:
    """Copy a dataset's tokenizer into the directory, and name it in the dataset config at `path` there, so that the
    directory can be moved."""
    if dataset.tokenizer_path is None:
        return
    source = dataset.resolve(dataset.tokenizer_path)
    encoder = load_encoder(source, dataset.tokenizer_is_pretrained)
    name = f"tokenizer_{encoder.fingerprint[:8]}"
    tokenizer_files.keep(encoder, source, os.path.join(directory, name))
    values = {**report.dataset_json(dataset), "tokenizer_path": f"../{name}", "tokenizer_is_pretrained": False}
    strict_json.write(path, values, durable=True)
