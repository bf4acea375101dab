"""The same model as a config here and as `config.json` of Hugging Face's GPT-Neo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.objectives.registry import objective_of

LAYER_NORM_EPSILON = 1e-5

# Activations by their names there; "gelu" is another function there than here.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu_accurate": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "mish": "mish",
    "leaky_relu": "lrelu001",
    "linear": "id",
}
_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first of several

# Keys whose value must be this for the model to be a GPT-Neo.
_PLAIN: dict[str, Any] = {
    "axial_pos_emb": None,
    "rotary_emb": False,
    "mlp_glu": False,
    "scalenorm": False,
    "rezero": False,
    "macaron": False,
    "share_parameters": False,
    "num_mem_kv": 0,
    "moe_layers": (),
}

# What GPTNeoConfig takes a missing key for.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "max_position_embeddings": 2048,
    "hidden_size": 2048,
    "num_layers": 24,
    "num_heads": 16,
    "attention_types": [[["global", "local"], 12]],
    "window_size": 256,
    "activation_function": "gelu_new",
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
    "layer_norm_epsilon": LAYER_NORM_EPSILON,
    "intermediate_size": None,
    "tie_word_embeddings": True,
}
_OTHER_NAMES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}


def check_expressible(config: Config) -> None:
    """
    Raises:
        InputError: the model has something that Hugging Face's GPT-Neo has not; the message names the key.
    """

    def refuse(key: str, value: Any, what: str) -> NoReturn:
        shown = value if isinstance(value, str) else json.dumps(value)
        raise InputError(f"{config.source}: {key} = {shown}: Hugging Face's GPT-Neo {what}, and cannot hold it")

    model = config.model
    for key, plain in _PLAIN.items():
        if (value := getattr(model, key)) != plain:
            refuse(key, list(value) if isinstance(value, tuple) else value, "has no such part")
    for number, kind in enumerate(model.attention_types):
        if kind not in ("global", "local"):
            refuse("attention_types", f"{kind} (layer {number})", "has global and local attention only")
    if model.activation_function not in _NAMES:
        refuse("activation_function", model.activation_function, "has no such activation")
    objective = objective_of(config)
    if not objective.causal:
        raise InputError(
            f"{config.source}: {objective.setting}: Hugging Face's GPT-Neo attends to what came before only, and "
            "cannot hold it"
        )


def to_hugging_face(
    config: Config, *, vocab_size: int, eos_id: int | None, pad_id: int | None, dtype: str
) -> dict[str, Any]:
    """`config.json` of a model that `check_expressible` lets pass.

    Args:
        vocab_size: rows of the token embedding that are kept.
        eos_id: also where a text begins, as GPT-Neo has it.
        dtype: of the weights.
    """
    model = config.model
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "vocab_size": vocab_size,
        "max_position_embeddings": model.n_ctx,
        "hidden_size": model.n_embd,
        "num_layers": model.n_layer,
        "num_heads": model.n_head,
        "attention_types": config.to_json()["attention_types"],
        "window_size": model.local_attention_radius,
        "intermediate_size": None,
        "activation_function": _NAMES[model.activation_function],
        "resid_dropout": model.res_dropout,
        "embed_dropout": model.embed_dropout,
        "attention_dropout": model.attn_dropout,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "tie_word_embeddings": not model.no_weight_tie,
        "torch_dtype": dtype,
    }


def from_hugging_face(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The architecture as flat keys of a config here.

    Args:
        values: what is in `config.json`.
        source: that file, for messages.

    Raises:
        InputError: another architecture, or a setting that no model here has.
    """
    kind = values.get("model_type")
    if kind != "gpt_neo":
        raise InputError(f"{source}: model_type = {kind!r}: only 'gpt_neo', GPT-Neo, can be read")
    architectures = values.get("architectures") or ["GPTNeoForCausalLM"]
    readable = ("GPTNeoForCausalLM", "GPTNeoModel")
    if not isinstance(architectures, list) or not any(name in architectures for name in readable):
        raise InputError(f"{source}: architectures = {architectures}: only GPTNeoForCausalLM can be read")
    if values.get("quantization_config"):
        raise InputError(f"{source}: quantization_config: the weights are quantized; take the model as it was before")
    renamed = {_OTHER_NAMES.get(name, name): value for name, value in values.items()}
    read = {name: renamed.get(name, default) for name, default in _DEFAULTS.items()}
    if type(read["hidden_size"]) is not int:
        raise InputError(f"{source}: hidden_size = {read['hidden_size']!r}: must be a whole number")
    if read["intermediate_size"] not in (None, 4 * read["hidden_size"]):
        raise InputError(
            f"{source}: intermediate_size = {read['intermediate_size']}: must be null or 4 x hidden_size, which "
            "feed-forward layers have here"
        )
    if read["layer_norm_epsilon"] != LAYER_NORM_EPSILON:
        raise InputError(f"{source}: layer_norm_epsilon = {read['layer_norm_epsilon']}: must be {LAYER_NORM_EPSILON}")
    if read["activation_function"] not in [*ACTIVATIONS]:  # a list, as it may be anything
        raise InputError(
            f"{source}: activation_function = {read['activation_function']!r}: must be one of {', '.join(ACTIVATIONS)}"
        )
    return {
        "n_layer": read["num_layers"],
        "n_embd": read["hidden_size"],
        "n_head": read["num_heads"],
        "n_ctx": read["max_position_embeddings"],
        "n_vocab": read["vocab_size"],
        "attention_types": read["attention_types"],
        "local_attention_radius": read["window_size"],
        "activation_function": ACTIVATIONS[read["activation_function"]],
        "embed_dropout": read["embed_dropout"],
        "attn_dropout": read["attention_dropout"],
        "res_dropout": read["resid_dropout"],
        "no_weight_tie": read["tie_word_embeddings"] is False,
    }
