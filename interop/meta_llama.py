"""Llama as Meta publishes it: `params.json` and `consolidated.NN.pth`, a file for each device that it was cut over.

Rotary positions turn neighbouring features there, and halves of a head's features in transformers; so rows of q and k
are reordered, as transformers' own conversion does.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop.model_folders import Joined, JoinedTensors, ModelFolder, Part, check_parts, numbered
from gpt_mesh.interop.shards import read_json
from gpt_mesh.interop.torch_files import TorchFile

PARAMS = "params.json"
_FILE = re.compile(r"consolidated\.(\d\d)\.pth")
_CUT = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0}  # the axis of each matrix
_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTER = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def open_folder(folder: str) -> ModelFolder:
    """
    Raises:
        InputError: a file is missing or damaged, or params.json is not Llama's.
    """
    source = os.path.join(folder, PARAMS)
    params = read_json(source)
    found = {int(match[1]): name for name in os.listdir(folder) if (match := _FILE.fullmatch(name))}
    if not found:
        raise InputError(f"{shown(folder)}: has {PARAMS}, but no consolidated.00.pth; download the weights")
    names = numbered(folder, found, "consolidated.{:02}.pth".format)
    files = [TorchFile(os.path.join(folder, name)) for name in names]
    values = _values(params, files, source)
    tensors = _tensors(folder, values, files)
    rows = tensors.shapes["model.embed_tokens.weight"][0]
    if values["vocab_size"] == -1:  # Meta's own program asks the tokenizer
        values["vocab_size"] = rows
    return ModelFolder(source, values, tensors, [folder, os.path.dirname(os.path.abspath(folder))])


def _values(params: Mapping[str, Any], files: Sequence[TorchFile], source: str) -> dict[str, Any]:
    """The values of transformers' config.json."""
    for name in ("dim", "n_layers", "n_heads"):
        if type(params.get(name)) is not int or params[name] < 1:
            raise InputError(f"{shown(source)}: {name} = {params.get(name)!r}: must be a positive whole number")
    if params.get("moe") or params.get("moe_args") or params.get("quantization_args"):
        raise InputError(f"{shown(source)}: mixtures of experts and quantized weights cannot be read; take others")
    dim, scaled = params["dim"], params.get("use_scaled_rope") is True
    factor = params.get("rope_scaling_factor") or (32 if dim < 4096 else 8)  # Llama 3.2's small models, and 3.1
    scaling = {
        "rope_type": "llama3",
        "factor": float(factor),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": _intermediate_size(params, source),
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta", 10000.0),
        "rope_scaling": scaling if scaled else None,
        "max_position_embeddings": _context(params),
        "vocab_size": params.get("vocab_size", -1),
        "tie_word_embeddings": not any("output.weight" in file.shapes() for file in files),
    }


def _intermediate_size(params: Mapping[str, Any], source: str) -> int:
    """The width of the feed-forward layers: two thirds of 4 x dim, times a factor, rounded up."""
    multiplier, multiple = params.get("ffn_dim_multiplier"), params.get("multiple_of", 256)
    if type(multiple) is not int or multiple < 1 or not isinstance(multiplier, (int, float, type(None))):
        raise InputError(f"{shown(source)}: multiple_of and ffn_dim_multiplier must be numbers; correct the file")
    size = int(2 * 4 * params["dim"] / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return -(-size // multiple) * multiple


def _context(params: Mapping[str, Any]) -> int:
    """The context that the models were trained with, which params.json rarely says; no weight depends on it."""
    if type(params.get("max_seq_len")) is int:
        return int(params["max_seq_len"])
    if params.get("use_scaled_rope") is True:
        return 131072
    base = params.get("rope_theta", 10000.0)
    if base >= 1e6:
        return 16384  # Code Llama
    if base > 1e4:
        return 8192  # Llama 3
    return 2048 if params.get("norm_eps") == 1e-6 else 4096  # Llama 1, Llama 2


def _tensors(folder: str, values: Mapping[str, Any], files: Sequence[TorchFile]) -> JoinedTensors:
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    head_dim = values["hidden_size"] // heads
    found = {}
    for theirs in dict.fromkeys(name for file in files for name in file.shapes()):
        ours = _name(theirs)
        if ours is None:
            continue
        parts: Sequence[Part] = [Part(file, theirs) for file in files if theirs in file.shapes()]
        if len(parts) < len(files):
            raise InputError(f"{shown(folder)}: {theirs} is in {len(parts)} of {len(files)} files; download them again")
        matrix = theirs.split(".")[-2]
        axis = _CUT.get(matrix)
        if matrix == "output":
            axis = 0
        elif matrix == "tok_embeddings":  # Llama 3 cuts the tokens, those before it the features
            axis = 0 if parts[0].shape[-1:] == (values["hidden_size"],) else 1
        check_parts(folder, theirs, parts, axis)
        rows = {"wq": heads * head_dim, "wk": kv_heads * head_dim, "wv": kv_heads * head_dim}.get(matrix)
        if rows is not None and parts[0].shape:
            parts = _distinct(folder, theirs, parts, rows)
        change = functools.partial(_halves, count=rows // head_dim) if rows and matrix != "wv" else None
        found[ours] = Joined(parts, axis, change=change)
    return JoinedTensors(found)


def _distinct(folder: str, name: str, parts: Sequence[Part], rows: int) -> Sequence[Part]:
    """The parts without repetitions: more devices than heads of keys have each head several times.

    Raises:
        InputError: they are fewer than it takes.
    """
    each = parts[0].shape[0]
    if each * len(parts) < rows and rows % max(each, 1) == 0:
        missing = f"consolidated.{len(parts):02}.pth"
        raise InputError(
            f"{shown(folder)}: {missing} is missing, as params.json makes {name} {rows} rows and {len(parts)} of "
            f"{rows // max(each, 1)} files have {each} each; download it"
        )
    return parts[:: max(1, each * len(parts) // rows)]


def _name(theirs: str) -> str | None:
    """The name in transformers' state dict; None: not a weight. A name that is not known stays, to be reported."""
    outer, _, part = theirs.rpartition(".")
    if outer in _OUTER:
        return f"{_OUTER[outer]}.{part}"
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", outer)
    if match and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{part}"
    return None if theirs == "rope.freqs" or theirs.endswith(".inner_attention.rope.freqs") else theirs


def _halves(weight: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """A matrix [heads * features, input] whose rows are pairs of a rotation, with the halves of each head apart."""
    if weight.ndim != 2 or weight.shape[0] % (2 * count):
        return weight  # its shape is refused elsewhere
    apart = weight.reshape(count, -1, 2, weight.shape[1]).swapaxes(1, 2)
    return apart.reshape(weight.shape)
