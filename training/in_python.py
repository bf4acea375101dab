"""Configs that a program makes in Python, with data that it has in memory."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt_mesh.config import SUFFIXES, Config, Group, Layer, layers_of, merged, parse_groups, parse_layers
from gpt_mesh.config.messages import show
from gpt_mesh.data import in_memory
from gpt_mesh.data.characters import character_encoder
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.in_memory import Data
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files, strict_json
from gpt_mesh.storage.progress import log
from gpt_mesh.training import runs

# A config, the name or path of one, a run's directory, flat keys, or a group of keys such as ModelConfig.
AnyModel: TypeAlias = Config | str | os.PathLike[str] | Mapping[str, Any] | Group
# A tokenizer's path or hub name, or an object: of the tokenizers library, or of transformers.
AnyTokenizer: TypeAlias = Encoder | Tokenizer | str | os.PathLike[str] | Any

SOURCE = "train()"
DATASET = "data"
# What a model has for data in memory where neither it nor its settings say otherwise.
DEFAULTS: dict[str, Any] = {
    "n_layer": 4, "n_head": 4, "n_embd": 128, "n_ctx": 128, "train_batch_size": 32, "train_steps": 1000, "lr": 1e-3,
    "weight_decay": 0.1,
}  # fmt: skip
_MOST_EVALUATED = 4096  # windows of held-out text, unless eval_steps says otherwise


@dataclass(frozen=True)
class InMemory:
    """What a program gives `train` in place of files.

    Attributes:
        data: to train on.
        held_out: to evaluate.
        tokenizer: of texts; None: the model's, or else their characters.
    """

    data: Data
    held_out: Data | None = None
    tokenizer: AnyTokenizer | None = None


def plain(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a config as a program gives them, with paths as text."""
    return {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in keys.items()}


def config_of(model: AnyModel, settings: Mapping[str, Any]) -> Config:
    """The config of a model, with keys above it.

    Raises:
        InputError: something in it cannot work.
    """
    if isinstance(model, Config) and not settings:
        return model
    return parse_layers([*_layers(model), *([Layer(SOURCE, settings)] if settings else [])])


def config_with_data(model: AnyModel | None, settings: Mapping[str, Any], given: InMemory, *, new: bool) -> Config:
    """The config of a model that trains on data in memory, which is written into the run's directory.

    Args:
        model: keys that it lacks are those of `DEFAULTS`; None: all of them.
        settings: keys above it. Without `model_path`, the run is in a temporary folder, deleted when Python ends.
        new: forget the tokenizer that the run has.

    Raises:
        InputError: the config or the data cannot work.
    """
    layers = [*([] if model is None else _layers(model)), *([Layer(SOURCE, settings)] if settings else [])]
    lowest = Layer(f"defaults of {SOURCE}", _defaults(merged(layers)[0]))
    values, source = merged([lowest, *layers])
    folder = os.path.abspath(os.path.expanduser(str(values.get("model_path") or _temporary_folder())))
    outline = {**values, "n_vocab": values.get("n_vocab", 1), "datasets": [DATASET], "model_path": folder}
    groups: Any = parse_groups(outline, source)
    n_ctx, training = groups["model"].n_ctx, groups["training"]
    limit = training.train_steps * training.train_batch_size * n_ctx

    def documents_of(data: Data, name: str) -> list[list[in_memory.Part]]:
        if training.learns_pairs:
            return in_memory.preferences_of(data, name)
        return in_memory.documents_of(data, name, limit)

    documents = documents_of(given.data, "data")
    held_out = [] if given.held_out is None else documents_of(given.held_out, "eval_data")
    texts = in_memory.texts_of([*documents, *held_out])
    encoder = _encoder(given.tokenizer, layers, folder, texts, new=new)
    eos_id: int | None = groups["data"].eos_id
    if eos_id is None and encoder is not None:
        eos_id = encoder.eos_id
    train, evaluated = (in_memory.encoded(part, encoder, eos_id) for part in (documents, held_out))
    n_vocab = values.get("n_vocab") or _vocabulary([*train, *evaluated], encoder)
    as_samples = all(len(ids) == n_ctx + 1 for ids in (*train, *evaluated))
    dataset: dict[str, Any] = {"n_vocab": encoder.n_vocab if encoder else n_vocab, "eos_id": eos_id}
    for key, ids, name in (("path", train, "data"), ("eval_path", evaluated, "eval_data")):
        if ids:
            tokens = sum(map(len, ids))
            if not training.learns_pairs and tokens <= n_ctx and (key == "path" or as_samples):
                raise InputError(f"{name}: {tokens} tokens do not fill a window of n_ctx + 1 = {n_ctx + 1}; give more")
            dataset[key] = os.path.join(folder, "data", f"{name}.bin")
            joined = ids if as_samples or training.learns_pairs else [in_memory.joined(ids, eos_id)]
            in_memory.write(dataset[key], joined, n_vocab)
    if encoder is not None:
        dataset["tokenizer_path"] = write_tokenizer(folder, encoder)
    files.make_folder(os.path.join(folder, "dataset_configs"))
    strict_json.write(os.path.join(folder, "dataset_configs", f"{DATASET}.json"), dataset)
    found: dict[str, Any] = {
        "model_path": folder, "n_vocab": n_vocab,
        "datasets": [[DATASET, 1, "chunks" if as_samples else "documents_random", 1.0]],
    }  # fmt: skip
    if training.learns_pairs:
        found["datasets"] = [[DATASET, 1, "documents_random", 1.0]]
    elif in_memory.is_marked([*documents, *held_out]):
        found["objective"] = "sft"
    if not evaluated and "eval_steps" not in settings:
        found["eval_steps"] = 0
    elif "eval_steps" not in values:
        windows = len(evaluated) if as_samples else -(-sum(map(len, evaluated)) // n_ctx)
        if training.learns_pairs:
            windows = len(evaluated) // 2 + training.eval_batch_size - 1
        found["eval_steps"] = max(1, min(windows, _MOST_EVALUATED) // training.eval_batch_size)
    return parse_layers([lowest, *layers, Layer("data", found)], directory=Path(folder))


def write_tokenizer(folder: str, encoder: Encoder) -> str:
    """Write a tokenizer into a run's directory; returns its path. Its name tells it from others."""
    path = os.path.join(folder, "tokenizer", f"tokenizer-{encoder.fingerprint[:8]}.json")
    files.make_folder(os.path.dirname(path))
    files.write_text(path, encoder.tokenizer.to_str())
    return path


def _layers(model: AnyModel) -> list[Layer]:
    """The layers of a model, the lowest first."""
    if isinstance(model, Config):
        return [Layer(model.source, model.given, model.directory)]
    if isinstance(model, Group):
        return [Layer(type(model).__name__, model.model_dump(mode="json", exclude_unset=True))]
    if isinstance(model, Mapping):
        return [Layer("model", plain(model))]
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(
            f"{SOURCE}: model = {show(model)}: must be a config's name or path, a run's directory, a Config, a "
            "ModelConfig, or a dictionary of keys"
        )
    name = os.path.expanduser(os.fspath(model))
    if name.endswith(SUFFIXES) or not (os.path.basename(name) != name or os.path.isdir(name)):
        return layers_of(name)
    config, checkpoint = runs.find(name)
    if checkpoint is not None:
        raise InputError(
            f"{SOURCE}: {name}: training continues a run from its newest checkpoint; name the run's directory, or "
            "begin another run with these weights by init_from"
        )
    return [Layer(config.source, config.given, config.directory)]


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """`DEFAULTS`, and those that follow from the keys that are given."""
    steps, width = (values.get(name, DEFAULTS[name]) for name in ("train_steps", "n_embd"))
    found = dict(DEFAULTS)
    if isinstance(steps, int):
        found |= {"warmup_steps": min(100, max(0, steps) // 10), "iterations": max(1, min(50, steps // 10))}
    if isinstance(width, int) and width > 0:
        found["n_head"] = next(heads for heads in (4, 3, 2, 1) if width % heads == 0)
    return found


def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="gpt_mesh_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.info("no model_path: the run is in %s, deleted when Python ends; model.save(FOLDER) keeps the model", folder)
    return folder


def _encoder(
    given: AnyTokenizer | None, layers: Sequence[Layer], folder: str, texts: Sequence[str], *, new: bool
) -> Encoder | None:
    """The tokenizer of texts: what is given, else the run's, else the model's, else their characters."""
    if given is not None:
        return _as_encoder(given)
    written = os.path.join(folder, "dataset_configs", f"{DATASET}.json")
    if os.path.exists(written) and not new:
        known = runs.config_of_run(folder) if os.path.exists(os.path.join(folder, "config.json")) else None
    else:
        known = parse_layers(layers) if "datasets" in merged(layers)[0] else None
    if known is not None:
        dataset = known.data.datasets[0].dataset
        if dataset.tokenizer_path is not None:
            return load_encoder(dataset.resolve(dataset.tokenizer_path), dataset.tokenizer_is_pretrained)
    return character_encoder(texts) if texts else None


def _as_encoder(given: AnyTokenizer) -> Encoder:
    if isinstance(given, Encoder):
        return given
    if isinstance(given, (str, os.PathLike)):
        return load_encoder(os.path.expanduser(os.fspath(given)), pretrained=True)
    fast = getattr(given, "backend_tokenizer", given)  # of transformers
    if not isinstance(fast, Tokenizer):
        raise InputError(
            f"{SOURCE}: tokenizer = {show(type(given).__name__)}: must be a path, a name of the Hugging Face hub, or a "
            "tokenizer of tokenizers or transformers (a fast one)"
        )
    return Encoder(Tokenizer.from_str(fast.to_str()), "the given tokenizer")


def _vocabulary(documents: Sequence[NDArray[np.int32]], encoder: Encoder | None) -> int:
    """Ids of the tokenizer, or of all documents if there is none."""
    if encoder is not None:
        return encoder.n_vocab
    return 1 + max(int(max(ids.max(), -1 - ids.min())) for ids in documents if len(ids))
