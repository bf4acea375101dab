"""A checkpoint as a Hugging Face model, shard by shard."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gpt_mesh.config import Config
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError, shown
from gpt_mesh.evaluation.validation import required_encoder
from gpt_mesh.interop import architectures, model_card, tokenizer_files
from gpt_mesh.interop.architecture import TOKEN_WEIGHTS, Architecture
from gpt_mesh.interop.exchange import Exchange
from gpt_mesh.interop.shards import SAFETENSORS, read_json
from gpt_mesh.interop.tokenizer_files import write_json
from gpt_mesh.interop.weights import CheckpointWeights, is_finite, weight_sizes
from gpt_mesh.storage import output_folder
from gpt_mesh.storage.progress import BYTES, Progress

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SHARD_BYTES = 2_000_000_000

# Names of the files that an export writes.
_WRITTEN = re.compile(
    r"README\.md|(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|vocab)\.json|merges\.txt|chat_template\.jinja|"
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


@dataclass(frozen=True)
class _OutputTensor:
    """A tensor to write: the exchange that it belongs to, which of its tensors it is, and its shape in the file."""

    exchange: Exchange
    number: int
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.exchange.theirs[self.number]


def export_model(
    config: Config,
    checkpoint: str,
    folder: str,
    *,
    architecture: str | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    licence: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write a folder that `transformers` loads with `from_pretrained`: weights, config.json, generation_config.json,
    the tokenizer's files and a model card.

    The rows of the token embedding beyond the vocabularies of the tokenizer and the datasets, which are padding for a
    mesh, are omitted.

    Args:
        config: the config of the checkpoint.
        checkpoint: its path, without a suffix.
        folder: new, or empty.
        architecture: its `model_type`, if several can express the model; default: the first that can.
        dtype: of the weights: "float32", "float16" or "bfloat16".
        shard_bytes: maximum bytes of a weight file with more than one tensor; twice that is used in memory.
        licence: an identifier such as "mit", for the model card.
        overwrite: replace the folder, if it only contains an exported model.

    Returns:
        The names of the files written.

    Raises:
        InputError: no Hugging Face architecture can represent the model, weights are not finite, or the folder is in
            use.
    """
    kind = architectures.of_config(config, architecture)
    output_folder.check(folder, overwrite)
    _check_replaceable(folder)
    encoder = required_encoder(config)
    if encoder.n_vocab > config.model.n_vocab:
        raise InputError(
            f"{encoder.where}: has {encoder.n_vocab} tokens, but {config.source} says n_vocab = "
            f"{config.model.n_vocab}; use the tokenizer that made the training data"
        )
    wanted = {name: list(shape) for name, shape in weight_sizes(config.model).items()}
    checkpoints.contents(checkpoint, {**wanted, "global_step": []}, config.source)
    n_vocab = max(encoder.n_vocab, *(use.dataset.n_vocab for use in config.data.datasets))
    tensors = _tensors(kind, config, n_vocab)
    with output_folder.replaced(folder) as temporary:
        _write_descriptions(temporary, kind, config, encoder, n_vocab, dtype)
        card = model_card.text(config, kind, checkpoint, os.path.basename(folder.rstrip("/")), n_vocab, licence)
        with open(os.path.join(temporary, "README.md"), "w", encoding="utf-8") as file:
            file.write(card)
        _write_weights(temporary, CheckpointWeights(checkpoint), tensors, dtype, shard_bytes)
    return sorted(os.listdir(folder))


def _check_replaceable(folder: str) -> None:
    """
    Raises:
        InputError: the folder contains anything but an exported model.
    """
    here, target = os.path.realpath("."), os.path.realpath(folder)
    if os.path.commonpath([here, target]) == target:
        raise InputError(f"{shown(folder)}: is the folder that you are in, or holds it; name another folder")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    if not names:
        return
    if "config.json" not in names or not _is_known(read_json(os.path.join(folder, "config.json"))):
        what = "has no config.json of one"
    elif more := [name for name in names if not _WRITTEN.fullmatch(name) or os.path.isdir(os.path.join(folder, name))]:
        what = f"holds {more[0]} as well"
    else:
        return
    raise InputError(f"{shown(folder)}: --overwrite replaces an exported model, and this {what}; name another folder")


def _is_known(values: dict[str, Any]) -> bool:
    return values.get("model_type") in [*architectures.ARCHITECTURES]  # a list, as it may be anything


def _tensors(kind: Architecture, config: Config, vocab_size: int) -> list[_OutputTensor]:
    """The tensors to write, in order, with the vocabulary truncated."""
    sizes = weight_sizes(config.model)
    found = []
    for exchange in kind.tensors(config.model):
        for i, shape in enumerate(exchange.shapes(sizes)):
            size = (vocab_size, *shape[1:]) if exchange.ours[0] in TOKEN_WEIGHTS else shape
            found.append(_OutputTensor(exchange, i, size))
    return found


def _write_weights(
    folder: str, weights: CheckpointWeights, tensors: Sequence[_OutputTensor], dtype: str, shard_bytes: int
) -> None:
    width = np.dtype(DTYPES[dtype]).itemsize
    shards = _shards(tensors, width, shard_bytes)
    names = [SAFETENSORS]
    if len(shards) > 1:
        stem = SAFETENSORS.removesuffix(".safetensors")
        names = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    total = sum(width * math.prod(tensor.shape) for tensor in tensors)
    packed = _Packed(weights)
    with Progress(total, f"exporting {weights.source}", BYTES) as progress:
        for name, shard in zip(names, shards, strict=True):
            arrays = {}
            for tensor in shard:
                arrays[tensor.name] = _array(packed, tensor, dtype)
                progress.update(arrays[tensor.name].nbytes)
            path = os.path.join(folder, name)
            try:
                save_file(arrays, path, metadata={"format": "pt"})
            except SafetensorError as error:  # such as a full disk
                raise OSError(str(error)) from error
            shutil.copymode(os.path.join(folder, "config.json"), path)  # otherwise only its owner could read it
    if len(shards) > 1:
        places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(os.path.join(folder, f"{SAFETENSORS}.index.json"), index)


def _shards(tensors: Sequence[_OutputTensor], width: int, shard_bytes: int) -> list[list[_OutputTensor]]:
    """The tensors in groups of at most `shard_bytes`, or of one tensor."""
    shards: list[list[_OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        more = width * math.prod(tensor.shape)
        if shards[-1] and size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += more
    return shards


class _Packed:
    """The tensors of one exchange at a time, in their order, so that weights which hold several are read once."""

    def __init__(self, weights: CheckpointWeights) -> None:
        self.weights = weights
        self._arrays: Sequence[NDArray] = []

    def array(self, tensor: _OutputTensor) -> NDArray:
        """One tensor with all its rows, in the type of the checkpoint."""
        exchange, number = tensor.exchange, tensor.number
        if number == 0:
            self._arrays = exchange.pack([self.weights.read(name) for name in exchange.ours])
        array = self._arrays[number]
        if number == len(exchange.theirs) - 1:
            self._arrays = []  # makes room
        return array


def _array(packed: _Packed, tensor: _OutputTensor, dtype: str) -> NDArray:
    """One tensor as it is written."""
    array = packed.array(tensor)[tuple(slice(size) for size in tensor.shape)]
    with np.errstate(over="ignore"):  # found below
        narrow: NDArray = np.ascontiguousarray(array, DTYPES[dtype])
    if dtype == "float16" and not is_finite(narrow):
        source, name = shown(packed.weights.source), tensor.exchange.ours[0]
        raise InputError(f"{source}: {name} has elements beyond float16; export as bfloat16 or float32")
    return narrow


def _write_descriptions(
    folder: str, kind: Architecture, config: Config, encoder: Encoder, n_vocab: int, dtype: str
) -> None:
    """Write config.json, generation_config.json and the tokenizer."""
    ids = tokenizer_files.token_ids(config.data.datasets[0].dataset, encoder)
    values = {
        **kind.described(config.model),
        "vocab_size": n_vocab,
        "initializer_range": 0.02,
        "use_cache": True,
        **ids.values(),
        "torch_dtype": dtype,
    }
    write_json(os.path.join(folder, "config.json"), values)
    if not config.model.reward_head:
        _write_generation(folder, config, ids)
    tokenizer_files.write(encoder, folder, ids=ids, n_ctx=config.model.n_ctx)


def _write_generation(folder: str, config: Config, ids: tokenizer_files.TokenIds) -> None:
    """Write generation_config.json."""
    sampling = config.training.generation
    generation = {
        **ids.values(),
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature or 1.0,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_length": config.model.n_ctx,
    }
    write_json(os.path.join(folder, "generation_config.json"), generation)
