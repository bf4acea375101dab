"""Checkpoints of GPT-NeoX (Megatron-DeepSpeed), as they are trained: `global_stepN/` with a file for each layer and
device (`layer_XX-model_YY-model_states.pt`, with pipelines), or one for each device (`mp_rank_YY_model_states.pt`).

The model's settings are the keys of the run's configs, which GPT-NeoX keeps in `global_stepN/configs/*.yml`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from gpt_mesh.config.files import parse_yaml
from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop.model_folders import Joined, JoinedTensors, ModelFolder, Part, check_parts, numbered
from gpt_mesh.interop.neox_model import GATED, NeoXModel, rows_by_part
from gpt_mesh.interop.torch_files import TorchFile

_LAYER_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_RANK_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_YAML = (".yml", ".yaml")

# GPT-NeoX's defaults of the keys that are read here.
_DEFAULTS: dict[str, Any] = {
    "num_layers": None,
    "hidden_size": None,
    "num_attention_heads": None,
    "max_position_embeddings": None,
    "intermediate_size": None,
    "model_parallel_size": 1,
    "pos_emb": "learned",
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000,
    "norm": "layernorm",
    "layernorm_epsilon": 1e-5,
    "rms_norm_epsilon": 1e-8,
    "scalenorm_epsilon": 1e-8,
    "rmsnorm_fusion": False,
    "no_weight_tying": False,
    "gpt_j_residual": False,
    "gpt_j_tied": False,
    "num_kv_heads": None,
    "mlp_type": "regular",
    "activation": "gelu",
    "bias_gelu_fusion": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "use_bias_in_attn_linear": True,
    "use_bias_in_mlp": True,
    "vocab_file": None,
}
# Keys that must have one of these values. "global" attention has other names for other kernels.
_FIXED: dict[str, tuple[Any, ...]] = {
    "pos_emb": ("rotary", "learned", "alibi", "none"),
    "norm": ("layernorm", "rmsnorm", "scalenorm"),
    "mlp_type": ("regular", "llama", None),
    "use_qk_layernorm": (False, None),
    "use_bias_in_norms": (True, None),
    "sliding_window_width": (None,),
    "moe_num_experts": (1, None),
}
_WHOLE_ATTENTION = {"global", "flash"}
_THEIR_NAMES = {"gelu_exact": "gelu", "silu": "silu", "relu": "relu"}
_ACTIVATIONS = ("gelu", "relu", "silu", "swish", "mish")

# The axis along which each part of a layer is cut; None: each device has the whole.
_LAYER: dict[str, int | None] = {
    "input_layernorm.weight": None,
    "input_layernorm.bias": None,
    "attention.query_key_value.weight": 0,
    "attention.query_key_value.bias": 0,
    "attention.dense.weight": 1,
    "attention.dense.bias": None,
    "post_attention_layernorm.weight": None,
    "post_attention_layernorm.bias": None,
    "mlp.dense_h_to_4h.weight": 0,
    "mlp.dense_h_to_4h.bias": 0,
    "mlp.dense_4h_to_h.weight": 1,
    "mlp.dense_4h_to_h.bias": None,
    "mlp.w1.weight": 0,
    "mlp.w2.weight": 1,
    "mlp.w3.weight": 0,
}
# Parts of names that differ between versions and norms.
_OTHER_NAMES = (
    (re.compile(r"^mlp\.linear1\."), "mlp.dense_h_to_4h."),
    (re.compile(r"^mlp\.linear2\."), "mlp.dense_4h_to_h."),
    (re.compile(r"norm\.(scale|g)$"), "norm.weight"),
)
_BUFFERS = (
    "attention.rotary_emb.inv_freq", "attention.bias", "attention.masked_bias", "attention.alibi_embed.slopes",
)  # fmt: skip


def step_folder(folder: str) -> str | None:
    """The folder with the files of weights: this one, or the one that the file `latest` in it names; None: neither."""
    latest = os.path.join(folder, "latest")
    if os.path.isfile(latest):
        with open(latest, "rb") as file:
            name = file.read(200).decode("utf-8", "replace").strip()
        if name and os.path.basename(name) == name and os.path.isdir(os.path.join(folder, name)):
            return os.path.join(folder, name)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return folder if any(_LAYER_FILE.fullmatch(name) or _RANK_FILE.fullmatch(name) for name in names) else None


def open_folder(folder: str) -> ModelFolder:
    """
    Args:
        folder: see `step_folder`.

    Raises:
        InputError: a file is missing or damaged, or the config has settings that cannot be read.
    """
    step = step_folder(folder)
    assert step is not None
    given, source = _config(step)
    config = _DEFAULTS | {name: value for name, value in given.items() if value is not None}
    values = _values(config, given, source)
    tensors = _tensors(step, config, source)
    embedding = tensors.joined.get("gpt_neox.embed_in.weight")
    if embedding is not None:
        values["vocab_size"] = embedding.shape[0]
    name = "w2" if config["mlp_type"] == "llama" else "dense_4h_to_h"
    output = tensors.joined.get(f"gpt_neox.layers.0.mlp.{name}.weight")
    if values["gated"] and output is not None:
        values["intermediate_size"] = output.shape[-1]  # versions of GPT-NeoX round differently
    run = os.path.dirname(os.path.abspath(step))
    own = [config["vocab_file"]] if isinstance(config["vocab_file"], str) else []
    return ModelFolder(source, values, tensors, [step, run, *own], NeoXModel(separate=config["mlp_type"] == "llama"))


def _config(step: str) -> tuple[dict[str, Any], str]:
    """The keys of the run's configs, with _ in place of -, and the files or the folder that they are from."""
    run = os.path.dirname(os.path.abspath(step))
    for folder in (os.path.join(step, "configs"), step, os.path.join(run, "configs"), run):
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        files = [os.path.join(folder, name) for name in names if name.endswith(_YAML)]
        if files:
            found: dict[str, Any] = {}
            for path in files:
                with open(path, "rb") as file:
                    values = parse_yaml(file.read(), shown(path))
                if not isinstance(values, dict):
                    raise InputError(f"{shown(path)}: must hold GPT-NeoX's keys; put the run's config there")
                found |= {str(name).replace("-", "_"): value for name, value in values.items()}
            return found, files[0] if len(files) == 1 else folder
    raise InputError(
        f"{shown(step)}: has no configs/*.yml, which say what the model is; put the .yml files that it was trained "
        "with there"
    )


def _values(config: Mapping[str, Any], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Those of a `NeoXModel`."""
    for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "model_parallel_size"):
        if type(config[name]) is not int or config[name] < 1:
            raise InputError(f"{shown(source)}: {name} = {config[name]!r}: must be a positive whole number")
    for name, wanted in _FIXED.items():
        if (value := given.get(name, config.get(name, wanted[0]))) not in wanted:
            known = " or ".join(repr(one) for one in wanted if one is not None or len(wanted) == 1)
            raise InputError(f"{shown(source)}: {name} = {value!r}: only {known} can be read")
    if others := _words(given.get("attention_config")) - _WHOLE_ATTENTION:
        raise InputError(f"{shown(source)}: attention_config: {min(others)}: only 'global' attention can be read")
    kv_heads, separate = config["num_kv_heads"], config["mlp_type"] == "llama"
    if kv_heads == config["num_attention_heads"]:
        kv_heads = None
    if kv_heads is not None and (type(kv_heads) is not int or kv_heads < 1 or kv_heads % config["model_parallel_size"]):
        problem = "must be a whole number that model_parallel_size divides"
        raise InputError(f"{shown(source)}: num_kv_heads = {kv_heads!r}: {problem}")
    if config["gpt_j_residual"] and (separate or not config["use_bias_in_mlp"]):
        name, value = ("mlp_type", "llama") if separate else ("use_bias_in_mlp", False)
        problem = "with gpt_j_residual, GPT-NeoX leaves attention out of such a layer; it cannot be read"
        raise InputError(f"{shown(source)}: {name} = {value!r}: {problem}")
    return {
        "model_type": "gpt_neox",
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"] or 4 * config["hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": config["max_position_embeddings"],
        "pos_emb": config["pos_emb"],
        "rotary_pct": config["rotary_pct"],
        "rotary_emb_base": config["rotary_emb_base"],
        "norm": config["norm"],
        "layer_norm_eps": _epsilon(config, source),
        "use_parallel_residual": config["gpt_j_residual"],
        "gpt_j_tied": bool(config["gpt_j_residual"] and config["gpt_j_tied"]),
        **_activation(config, separate, source),
        "attention_bias": config["use_bias_in_attn_linear"],
        "mlp_bias": config["use_bias_in_mlp"] and not separate,
        "hidden_dropout": config["hidden_dropout"],
        "attention_dropout": config["attention_dropout"],
        "tie_word_embeddings": not config["no_weight_tying"],
    }


def _epsilon(config: Mapping[str, Any], source: str) -> float:
    """What is added to the mean square. GPT-NeoX's own RMSNorm adds epsilon to the root instead: like its square under
    the root, as far as it matters.
    """
    names = {"layernorm": "layernorm_epsilon", "rmsnorm": "rms_norm_epsilon", "scalenorm": "scalenorm_epsilon"}
    name = names[config["norm"]]
    value = config[name]
    if not isinstance(value, float) or not value > 0:
        raise InputError(f"{shown(source)}: {name} = {value!r}: must be a positive number, such as 1.0e-5")
    return value**2 if config["norm"] == "rmsnorm" and not config["rmsnorm_fusion"] else value


def _activation(config: Mapping[str, Any], separate: bool, source: str) -> dict[str, Any]:
    """Of a feed-forward: its activation by transformers' name, and whether it is gated."""
    kind = config["activation"]
    if kind in GATED and not separate:
        return {"hidden_act": _THEIR_NAMES[GATED[kind]], "gated": True}
    if kind not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS if separate else (*_ACTIVATIONS, *GATED))
        raise InputError(f"{shown(source)}: activation = {kind!r}: only these can be read: {known}")
    fused = kind == "gelu" and config["bias_gelu_fusion"] is True  # the fused function is the tanh form
    return {"hidden_act": "gelu_new" if fused else kind, "gated": separate}


def _words(value: Any) -> set[str]:
    """All strings in a nested list."""
    if isinstance(value, list):
        return set().union(*map(_words, value)) if value else set()
    return {value} if isinstance(value, str) else set()


def _files(step: str, size: int, source: str) -> dict[int | None, list[TorchFile]]:
    """The files of all devices, in their order, by layer; under None where each holds all layers."""
    layers: dict[int | None, dict[int, str]] = {}
    ranks: dict[int, str] = {}
    for name in os.listdir(step):
        if match := _LAYER_FILE.fullmatch(name):
            layers.setdefault(int(match[1]), {})[int(match[2])] = name
        elif match := _RANK_FILE.fullmatch(name):
            ranks[int(match[1])] = name
    found: dict[int | None, list[TorchFile]] = {}
    for layer, names in (layers or {None: ranks}).items():
        form = "mp_rank_{:02}_model_states.pt" if layer is None else f"layer_{layer:02}-model_{{:02}}-model_states.pt"
        listed = numbered(step, names, form.format)
        if len(listed) != size:
            what = f"{form.format(len(listed))} is missing" if len(listed) < size else f"holds {len(listed)} parts"
            raise InputError(f"{shown(step)}: {what}, as {shown(source)} has model_parallel_size = {size}; add it")
        within = "module" if layer is None else None
        found[layer] = [TorchFile(os.path.join(step, name), within) for name in listed]
    return found


def _tensors(step: str, config: Mapping[str, Any], source: str) -> JoinedTensors:
    found, tied = {}, config["gpt_j_residual"] and config["gpt_j_tied"]
    for layer, files in _files(step, config["model_parallel_size"], source).items():
        for name in dict.fromkeys(name for file in files for name in file.shapes()):
            parts = [Part(file, name) for file in files if name in file.shapes()]
            if len(parts) < len(files):
                raise InputError(
                    f"{shown(step)}: {name} is in {len(parts)} of {len(files)} files; are they of one checkpoint?"
                )
            number, local = layer, name
            if number is None:
                match = re.fullmatch(r"sequential\.(\d+)\.(.+)", name)
                number, local = (int(match[1]), match[2]) if match else (-1, name)
            if local in _BUFFERS or (tied and local.startswith("post_attention_layernorm.")):
                continue
            for pattern, other in _OTHER_NAMES:
                local = pattern.sub(other, local)
            theirs, axis = _place(number, local, config["num_layers"])
            if theirs is None:
                continue
            check_parts(step, theirs, parts, axis)
            # Parallel branches are summed over devices with the biases of each; others get theirs after the sum.
            total = bool(config["gpt_j_residual"]) and local in ("attention.dense.bias", "mlp.dense_4h_to_h.bias")
            found[theirs] = Joined(parts, axis, total, _by_part(config, local, parts))
    return JoinedTensors(found)


def _by_part(config: Mapping[str, Any], name: str, parts: Sequence[Part]) -> Callable[[Any], Any] | None:
    """What orders the rows of a tensor of a block that has several parts on each device; None: it has one."""
    rows = parts[0].shape[0] if parts[0].shape else 0
    if name.startswith("mlp.dense_h_to_4h.") and config["activation"] in GATED:
        return partial(rows_by_part, [rows // 2, rows - rows // 2], len(parts))
    kv_heads, heads = config["num_kv_heads"], config["num_attention_heads"]
    if name.startswith("attention.query_key_value.") and kv_heads not in (None, heads):
        of_keys = config["hidden_size"] // heads * kv_heads // len(parts)
        return partial(rows_by_part, [rows - 2 * of_keys, of_keys, of_keys], len(parts))
    return None


def _place(number: int, name: str, n_layer: int) -> tuple[str | None, int | None]:
    """The name of a tensor of layer `number` in transformers' state dict, and the axis along which it is cut.

    Layers: 0 the embedding, from 2 on the blocks, then after one without weights the norm and the output matrix. A tied
    embedding is there twice.
    """
    if name == "word_embeddings.weight":
        return ("gpt_neox.embed_in.weight", 0) if number == 0 else (None, None)
    if name == "position_embeddings.weight" and number == 0:
        return "gpt_neox.embed_positions.weight", None
    if number == n_layer + 3 and name in ("norm.weight", "norm.bias"):
        return f"gpt_neox.final_layer_norm.{name.removeprefix('norm.')}", None
    if number == n_layer + 4 and name == "final_linear.weight":
        return "embed_out.weight", 0
    if 2 <= number < n_layer + 2 and name in _LAYER:
        return f"gpt_neox.layers.{number - 2}.{name}", _LAYER[name]
    return f"layer {number}: {name}", None  # not known, which will be reported
