"""Exports a model as a SavedModel, which plain TensorFlow and TensorFlow Serving run without this library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop.signatures import Signatures
from gpt_mesh.interop.tokenizer_files import write_json
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.optimizers.registry import is_slot
from gpt_mesh.storage import output_folder
from gpt_mesh.storage.progress import alive

EXTRA = "assets.extra"  # the folder for files outside of the graph
FILES = ("assets", EXTRA, "fingerprint.pb", "saved_model.pb", "variables")


def check_folder(folder: str, overwrite: bool) -> None:
    """
    Raises:
        InputError: the folder exists and `overwrite` is false, or it contains anything but a SavedModel.
    """
    output_folder.check(folder, overwrite)
    here, target = os.path.realpath("."), os.path.realpath(folder)
    if os.path.commonpath([here, target]) == target:
        raise InputError(f"{shown(folder)}: is the folder that you are in, or holds it; name another folder")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if name not in FILES:
            raise InputError(f"{shown(folder)}: holds {name}, which is no part of a SavedModel; name another folder")


def save(
    folder: str,
    config: Config,
    weights: Mapping[str, Any],
    encoder: Encoder | None,
    special: SpecialTokens,
    *,
    overwrite: bool = False,
) -> list[str]:
    """Write a SavedModel with the functions of `interop.signatures.Signatures`, and beside its graph the tokenizer.

    Args:
        folder: new, or empty.
        config: of the model.
        weights: arrays by their names in checkpoints, which they keep: `weights["gpt2/wte"]` of what
            `tf.saved_model.load` gives. Anything but weights is left out.
        encoder: the tokenizer, for callers of the model; None if there is none.
        special: what begins and what ends a text; a continuation without an end only ends at its length.
        overwrite: replace the folder, if it only contains a SavedModel.

    Returns:
        The names of the signatures.

    Raises:
        InputError: the folder is in use, or cannot be written.
    """
    check_folder(folder, overwrite)
    store = VariableStore("/device:CPU:0")
    for name, value in weights.items():
        if name.startswith("gpt2/") and not is_slot(name):
            store.add(name, value)
    module = tf.Module()
    module.weights = dict(store.masters)
    with alive("exporting"), output_folder.replaced(folder) as temporary:
        functions = Signatures(config, store, special).functions()
        # Concrete functions: otherwise TensorFlow would trace the functions again.
        graphs = {name: function.get_concrete_function() for name, function in functions.items()}
        with output_folder.tensorflow_writes(folder):
            tf.saved_model.save(module, temporary, signatures=graphs)
        extra = os.path.join(temporary, EXTRA)
        os.makedirs(extra)
        facts = {
            "n_ctx": config.model.n_ctx,
            "n_vocab": config.model.n_vocab,
            "bos_id": special.bos_id,
            "eos_id": special.eos_id,
            "eos_ids": list(special.eos_ids),
        }
        write_json(os.path.join(extra, "model.json"), facts)
        if encoder is not None:
            with open(os.path.join(extra, "tokenizer.json"), "w", encoding="utf-8") as file:
                file.write(encoder.tokenizer.to_str(pretty=True))
    return sorted(graphs)
