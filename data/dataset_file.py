"""The dataset config of what create_tfrecords.py has written."""

from __future__ import annotations

import glob
import json
import os

from gpt_mesh.data.chat_template import NAMED
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.manifest import Manifest, shard_pattern
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage
from gpt_mesh.storage import strict_json


def files_glob(folder: str, prefix: str) -> str:
    """A glob for the files called `prefix_<index>_<records>.tfrecords` in `folder`."""
    return os.path.join(folder if storage.is_url(folder) else glob.escape(folder), shard_pattern(prefix))


def write_dataset_config(
    path: str, folder: str, manifest: Manifest, encoder: Encoder, *, eos_id: int | None, pretrained: bool,
    chat_template: str | None = None,
) -> None:  # fmt: skip
    """Write a dataset config for the files in `folder`. eos_id: None is the tokenizer's, with all of its other ends of
    text. pretrained: the tokenizer is named as on the Hugging Face hub. chat_template: as its flag names it.

    Raises InputError, with what it would hold, when it cannot be written.
    """
    held_out = "eval" in manifest.splits and manifest.splits["eval"].shards
    config: dict[str, object] = {
        "path": relative_to_config(files_glob(folder, manifest.prefix("train")), path),
        "eval_path": relative_to_config(files_glob(folder, manifest.prefix("eval")), path) if held_out else "",
        "n_vocab": encoder.n_vocab,
        "tokenizer_path": encoder.source if pretrained else relative_to_config(encoder.source, path),
        "tokenizer_is_pretrained": pretrained,
        "bos_id": encoder.bos_id,
        "eos_id": encoder.eos_id if eos_id is None else eos_id,
        "stop_token_ids": list(encoder.eos_ids[1:]) or None if eos_id is None else None,
        "padding_id": encoder.padding_id,
        "chat_template": _template(chat_template, path),
    }
    content = {key: value for key, value in config.items() if value is not None}
    try:
        strict_json.write(path, content)
    except storage.errors() as error:
        by_hand = f"write it by hand: {json.dumps(content)}"
        raise InputError(f"{shown(path)}: cannot be written: {storage.reason(error)}; {by_hand}") from error
    print(f"dataset config: {shown(path)}")


def _template(name: str | None, config_path: str) -> str | None:
    """A template as the config is to name it: a name, or a file as seen from the config."""
    return name if name is None or name in NAMED else relative_to_config(name, config_path)


def relative_to_config(path: str, config_path: str) -> str:
    """`path` as seen from the config's folder, so that both can move together; absolute when they share no folder."""
    if storage.is_url(path):
        return path
    path = os.path.abspath(path)
    if storage.is_url(config_path):
        return path
    folder = os.path.dirname(os.path.abspath(config_path))
    try:
        shared = os.path.commonpath([path, folder])
    except ValueError:  # two drives
        return path
    return path if os.path.dirname(shared) == shared else os.path.relpath(path, folder)
