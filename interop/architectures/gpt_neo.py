"""GPT-Neo (https://huggingface.co/docs/transformers/model_doc/gpt_neo)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_mesh.config import Config, ModelConfig
from gpt_mesh.errors import InputError
from gpt_mesh.interop.architecture import Architecture, Exchange, same, transposed

LAYER_NORM_EPSILON = 1e-5

# Activations by their names there. Their "gelu" is the exact one, ours the tanh form.
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
_THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first of several

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

_LAYER = [
    (same, "ln_1.weight", "norm_1/g"),
    (same, "ln_1.bias", "norm_1/b"),
    (transposed, "attn.attention.q_proj.weight", "attn/q"),
    (transposed, "attn.attention.k_proj.weight", "attn/k"),
    (transposed, "attn.attention.v_proj.weight", "attn/v"),
    (transposed, "attn.attention.out_proj.weight", "attn/o"),
    (same, "attn.attention.out_proj.bias", "attn/compute_output_bias/o_b"),
    (same, "ln_2.weight", "norm_2/g"),
    (same, "ln_2.bias", "norm_2/b"),
    (transposed, "mlp.c_fc.weight", "mlp/conv1d_main/c_fc/kernel"),
    (same, "mlp.c_fc.bias", "mlp/conv1d_main/c_fc/bias"),
    (transposed, "mlp.c_proj.weight", "mlp/conv1d_main/c_proj/kernel"),
    (same, "mlp.c_proj.bias", "mlp/conv1d_main/c_proj/bias"),
]


class GPTNeo(Architecture):
    """EleutherAI's GPT-Neo: pre-norm, learned positions, global and local attention without a scale."""

    model_type = "gpt_neo"
    title = "GPT-Neo"
    causal_class = "GPTNeoForCausalLM"
    base_class = "GPTNeoModel"
    prefix = "transformer."
    expresses = frozenset(
        {
            "n_layer", "n_head", "n_embd", "n_ctx", "n_vocab", "n_positions", "attention_types",
            "local_attention_radius", "activation_function", "no_weight_tie",
        }
    )  # fmt: skip

    def check_values(self, config: Config) -> None:
        for number, kind in enumerate(config.model.attention_types):
            if kind not in ("global", "local"):
                self.refuse(
                    config, "attention_types", f"{kind} (layer {number})", "has global and local attention only"
                )
        if (activation := config.model.activation_function) not in _THEIR_ACTIVATIONS:
            self.refuse(config, "activation_function", activation, "has no such activation")

    def config_values(self, config: Config) -> dict[str, Any]:
        model = config.model
        return {
            "max_position_embeddings": model.n_ctx,
            "hidden_size": model.n_embd,
            "num_layers": model.n_layer,
            "num_heads": model.n_head,
            "attention_types": config.to_json()["attention_types"],
            "window_size": model.local_attention_radius,
            "intermediate_size": None,
            "activation_function": _THEIR_ACTIVATIONS[model.activation_function],
            "resid_dropout": model.res_dropout,
            "embed_dropout": model.embed_dropout,
            "attention_dropout": model.attn_dropout,
            "layer_norm_epsilon": LAYER_NORM_EPSILON,
            "initializer_range": 0.02,
        }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
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
            raise InputError(
                f"{source}: layer_norm_epsilon = {read['layer_norm_epsilon']}: must be {LAYER_NORM_EPSILON}"
            )
        if read["activation_function"] not in [*ACTIVATIONS]:  # a list, as it may be anything
            raise InputError(
                f"{source}: activation_function = {read['activation_function']!r}: must be one of "
                f"{', '.join(ACTIVATIONS)}"
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

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        found = [same("transformer.wte.weight", "gpt2/wte"), same("transformer.wpe.weight", "gpt2/wpe")]
        for i in range(model.n_layer):
            found += [how(f"transformer.h.{i}.{theirs}", f"gpt2/h{i}/{ours}") for how, theirs, ours in _LAYER]
        found += [same("transformer.ln_f.weight", "gpt2/ln_f/g"), same("transformer.ln_f.bias", "gpt2/ln_f/b")]
        if model.no_weight_tie:
            found.append(transposed("lm_head.weight", "gpt2/linear_out/kernel"))
        return found

    def is_buffer(self, name: str) -> bool:
        """The masks that older files hold."""
        return name.endswith((".attn.attention.bias", ".attn.attention.masked_bias"))
