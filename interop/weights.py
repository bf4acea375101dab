"""Weights to begin from, by their names here: a checkpoint's, or a Hugging Face folder's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh.config import Config, ModelConfig, parse_model, values_of_causal_model, values_of_config
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop import architectures, meta_llama, neox_checkpoint, tokenizer_files
from gpt_mesh.interop.exchange import Exchange
from gpt_mesh.interop.model_folders import ModelFolder
from gpt_mesh.interop.shards import Shards, read_json
from gpt_mesh.models.shapes import weight_shapes
from gpt_mesh.storage.progress import log
from gpt_mesh.training import runs


class Weights(Protocol):
    """Weights, and perhaps optimizer state, read one at a time.

    Attributes:
        source: where they are, for messages.
        shapes: by name; a checkpoint's slots too.
        config: values of the keys of the config that they were trained with, as far as they are known; empty: none.
        tokenizer: the one that they were trained with; None: not known.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    tokenizer: Encoder | None

    def read(self, name: str) -> NDArray:
        """One of them.

        Raises:
            InputError: the file is damaged, or an element is not a finite number.
        """


class CheckpointWeights:
    """Those of a TensorFlow checkpoint, this program's or the reference's."""

    def __init__(self, path: str) -> None:
        """`path`: without a suffix. The architecture and the tokenizer are those of the config beside it, if any."""
        self.source = path
        try:
            self._reader = tf.compat.v1.train.NewCheckpointReader(path)
        except (tf.errors.OpError, ValueError) as error:
            raise InputError(f"{shown(path)}: not a readable checkpoint ({str(error).splitlines()[0]})") from None
        shapes = self._reader.get_variable_to_shape_map()
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in shapes.items()}
        config = _config_beside(path)
        self.config: Mapping[str, Any] = values_of_config(config) if config else {}
        self.tokenizer = local_tokenizer(config) if config else None

    def read(self, name: str) -> NDArray:
        """One variable, in the type it is stored in."""
        try:
            array: NDArray = self._reader.get_tensor(name)
        except (tf.errors.OpError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{shown(self.source)}: variable {name} cannot be read ({reason}); the file is damaged"
            ) from None
        return _finite(self.source, name, array)


class HuggingFaceWeights:
    """Those of a folder with a model, as `transformers` keeps it or in an original layout (`open_model`)."""

    def __init__(self, folder: str) -> None:
        """
        Raises:
            InputError: another architecture, missing or damaged files, or weights that do not agree with config.json.
        """
        self.source = folder
        opened = open_model(folder)
        self.settings = opened.source
        self.kind = opened.kind or architectures.of_values(opened.values, opened.source)
        self.keys = self.kind.read(opened.values, opened.source)
        self.architecture = parse_model(self.keys, opened.source)
        self.config: Mapping[str, Any] = values_of_causal_model(self.architecture)
        self.tokenizer = tokenizer_files.find(opened.tokenizers)
        self._shards = opened.tensors
        exchanges = self.kind.tensors(self.architecture)
        self._exchanges = {name: exchange for exchange in exchanges for name in exchange.ours}
        self._is_bare = exchanges[0].theirs[0].removeprefix(self.kind.prefix) in self._shards.shapes
        self.shapes: Mapping[str, tuple[int, ...]] = weight_sizes(self.architecture)
        self._check(exchanges)

    def _name(self, theirs: str) -> str:
        """What the files call a tensor: without the prefix where the model has no output layer."""
        return theirs.removeprefix(self.kind.prefix) if self._is_bare else theirs

    def _check(self, exchanges: Sequence[Exchange]) -> None:
        found = self._shards.shapes
        wanted = {
            self._name(name): shape
            for exchange in exchanges
            for name, shape in zip(exchange.theirs, exchange.shapes(self.shapes), strict=True)
        }
        known = {*wanted, self._name(self.kind.head)}
        unused = sorted(name for name in found if name not in known and not self.kind.is_buffer(name))
        missing = [name for name in wanted if name not in found]
        if missing and missing[0] in self._shards.absent:
            raise InputError(
                f"{self.source}: tensor {missing[0]} is not in {self._shards.absent[missing[0]]}, where the index says "
                "it is; download that file again"
            )
        if missing:
            others = f", and has {_few(unused)} instead" if unused else ""
            raise InputError(
                f"{self.source}: has no tensor {_few(missing)}, which {os.path.basename(self.settings)} (model_type = "
                f"{self.kind.model_type}) asks for{others}; is one of the two another model's?"
            )
        for name, shape in wanted.items():
            if found[name] != shape:
                raise InputError(
                    f"{shown(self.source)}: tensor {name} has shape {list(found[name])}, but "
                    f"{os.path.basename(self.settings)} makes it {list(shape)}; is one of the two another model's?"
                )
        if unused:
            log.warning("%s: not used: %s", shown(self.source), _few(unused))

    def read(self, name: str) -> NDArray[np.float32]:
        """One weight, float32, in the form it has here."""
        exchange = self._exchanges[name]
        arrays = exchange.unpack(_Tensors([*map(self._name, exchange.theirs)], self._read))
        return np.asarray(arrays[exchange.ours.index(name)], order="C")

    def _read(self, theirs: str) -> NDArray[np.float32]:
        return _finite(self.source, theirs, self._shards.read(theirs))


class _Tensors(Sequence[NDArray]):
    """Tensors that are read when they are asked for."""

    def __init__(self, names: Sequence[str], read: Callable[[str], NDArray]) -> None:
        self._names, self._read = names, read

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> NDArray: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[NDArray]: ...
    def __getitem__(self, place: int | slice) -> NDArray | Sequence[NDArray]:
        if isinstance(place, slice):
            return _Tensors(self._names[place], self._read)
        return self._read(self._names[place])


def open_model(folder: str) -> ModelFolder:
    """A model's folder, in one of the layouts that are known (`model_folders`).

    Raises:
        InputError: a file is missing or damaged.
    """
    if not os.path.isfile(source := os.path.join(folder, "config.json")):
        if os.path.isfile(os.path.join(folder, meta_llama.PARAMS)):
            return meta_llama.open_folder(folder)
        if neox_checkpoint.step_folder(folder) is not None:
            return neox_checkpoint.open_folder(folder)
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        if any(name.startswith("consolidated.") for name in names):
            raise InputError(f"{shown(folder)}: has no {meta_llama.PARAMS}, which says what the model is; download it")
    return ModelFolder(source, read_json(source), Shards(folder), [folder])


def holds_model(folder: str) -> bool:
    """Whether a folder has files of a model that `open_model` reads."""
    names = ("config.json", meta_llama.PARAMS)
    described = any(os.path.isfile(os.path.join(folder, name)) for name in names)
    return described or neox_checkpoint.step_folder(folder) is not None


def open_weights(path: str) -> Weights:
    """The weights at a path: a checkpoint (without its suffix), a run's directory (its newest), or a Hugging Face
    folder.

    Raises:
        InputError: it is none of these, or cannot be used.
    """
    path, io = os.path.expanduser(path), tf.io.gfile
    if io.exists(path + ".index"):
        return CheckpointWeights(path)
    if io.isdir(path):
        if (newest := checkpoints.latest(path)) is not None:
            return CheckpointWeights(newest)
        if holds_model(path):
            weights = HuggingFaceWeights(path)
            if weights.tokenizer is not None:
                tokenizer_files.check(weights.tokenizer, weights.architecture.n_vocab, (), weights.settings)
            return weights
    raise InputError(
        f"{shown(path)}: no weights there; give a checkpoint (such as {path.rstrip('/')}/model.ckpt-5000), the "
        "directory of a "
        "run, or a Hugging Face folder with a config.json"
    )


def weight_sizes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of a model, by its name here."""
    return {name: tuple(shape.to_integer_list) for name, shape in weight_shapes(model).items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_finite(array: NDArray) -> bool:
    """Whether all elements are finite. Checked in chunks, to save memory."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[i : i + (1 << 22)]).all()) for i in range(0, flat.size, 1 << 22))


def _finite(source: str, name: str, array: NDArray) -> NDArray:
    if array.dtype.kind != "i" and not is_finite(array):
        raise InputError(
            f"{shown(source)}: {name} has elements that are not finite numbers (NaN or infinity); it is no use"
        )
    return array


def _config_beside(path: str) -> Config | None:
    """The config that the run of a checkpoint left beside it, if it did and it can still be read."""
    directory = os.path.dirname(path) or "."
    try:
        return runs.config_of_run(directory)
    except InputError as error:
        log.warning("%s: only shapes say which model and tokenizer it belongs to, as its config is unknown: %s",
                    path, error)  # fmt: skip
        return None


def local_tokenizer(config: Config) -> Encoder | None:
    """A config's tokenizer, where it is a local file that is there."""
    dataset = config.data.datasets[0].dataset
    if dataset.tokenizer_path is None:
        return None
    try:
        return load_encoder(dataset.resolve(dataset.tokenizer_path))
    except InputError:
        return None
