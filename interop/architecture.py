"""Base class of Hugging Face architectures: maps their `config.json` and weights to a model's config and weights.

`architectures/` has one file for each, and a table by `model_type`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import Config, ModelConfig, changes, parse_model, values_of_causal_model, values_of_config
from gpt_mesh.errors import InputError
from gpt_mesh.interop.exchange import Exchange, same
from gpt_mesh.objectives.registry import objective_of

# Weights with a row or a column for each token, by name, and the axis of tokens.
OUTPUT = "gpt2/linear_out/"  # before the names of the weights of the output layer
TOKEN_WEIGHTS = {"gpt2/wte": 0, "gpt2/linear_out/kernel": 1, "gpt2/linear_out/bias": 0}

# Activations by their names there. "gelu" is the exact one there, and the tanh form here.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu_accurate": "gelu",
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "mish": "mish",
    "leaky_relu": "lrelu001",
    "linear": "id",
}
THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first of several


class Architecture(ABC):
    """A model family of the `transformers` library.

    Attributes:
        model_type: the value in `config.json`.
        title: name for messages and model cards.
        causal_class: the class that predicts the next token, which exports use.
        base_class: the class without an output layer; its tensor names lack `prefix`.
        prefix: of tensor names.
        head: name of the output layer's matrix. A file may hold it although it is tied to the embedding.
        defaults: the keys of `config.json` that are read, with the values that `transformers` takes for missing ones.
        other_names: further names of such keys.
        fixed: keys of `config.json` that must have this value, which is also their default.
        same_keys: keys of `config.json` by name whose value is that of a config key.
        ignored: config keys that have no effect in this architecture.
    """

    model_type: ClassVar[str]
    title: ClassVar[str]
    causal_class: ClassVar[str]
    base_class: ClassVar[str]
    prefix: ClassVar[str]
    head: ClassVar[str] = "lm_head.weight"
    defaults: ClassVar[Mapping[str, Any]]
    other_names: ClassVar[Mapping[str, str]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {}
    same_keys: ClassVar[Mapping[str, str]]
    ignored: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The flat config keys that `same_keys` leaves out.

        Args:
            values: the keys in `defaults`, as `config.json` has them or by default.
            source: path of `config.json`, for messages.

        Raises:
            InputError: a setting is not supported.
        """

    @abstractmethod
    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        """The keys of `config.json` that `same_keys` leaves out. Settings that it has no key for are ignored."""

    @abstractmethod
    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        """Every tensor of the state dict once, and every weight once."""

    @property
    def reward_class(self) -> str:
        """The class that gives a text one number, which exports of reward models use."""
        return f"{self.base_class.removesuffix('Model')}ForSequenceClassification"

    def tensors(self, model: ModelConfig) -> list[Exchange]:
        """`exchanges`, of a reward model too: its head takes the place of the output layer."""
        found = self.exchanges(model)
        if not model.reward_head:
            return found
        return [one for one in found if not one.ours[0].startswith(OUTPUT)] + [same("score.weight", "gpt2/reward")]

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of a state dict is not a weight."""
        return name.endswith(".rotary_emb.inv_freq")

    def read(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Convert `config.json` to flat config keys.

        Args:
            values: its contents.
            source: its path, for messages.

        Raises:
            InputError: another class, quantized weights, or an unsupported setting.
        """
        classes = values.get("architectures") or [self.causal_class]
        gives_reward = classes == [self.reward_class] and _labels(values) == 1
        known = {self.causal_class, self.base_class}
        if not gives_reward and (not isinstance(classes, list) or not known & {*map(str, classes)}):
            raise InputError(f"{source}: architectures = {classes}: only {self.causal_class} can be read")
        if values.get("quantization_config"):
            raise InputError(f"{source}: quantization_config: the weights are quantized; use the original model")
        for name, wanted in self.fixed.items():
            if (value := values.get(name, wanted)) != wanted:
                raise InputError(f"{source}: {name} = {json.dumps(value)}: only {json.dumps(wanted)} is supported")
        given = {self.other_names.get(name, name): value for name, value in values.items()}
        found = {name: given.get(name, default) for name, default in self.defaults.items()}
        return {
            "n_vocab": found["vocab_size"],
            "no_weight_tie": not found["tie_word_embeddings"],
            **({"reward_head": True} if gives_reward else {}),
            **{ours: found[theirs] for theirs, ours in self.same_keys.items()},
            **self.model_keys(found, source),
        }

    def described(self, model: ModelConfig) -> dict[str, Any]:
        """The keys of `config.json` that describe a model, if this architecture can express it."""
        return {
            "architectures": [self.reward_class if model.reward_head else self.causal_class],
            **({"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if model.reward_head else {}),
            "model_type": self.model_type,
            "vocab_size": model.n_vocab,
            **{theirs: getattr(model, ours) for theirs, ours in self.same_keys.items()},
            **self.config_values(model),
            "tie_word_embeddings": not model.no_weight_tie,
        }

    def obstacles(self, config: Config) -> list[str]:
        """What in a config this architecture cannot express, such as ["norm = rmsnorm"]; empty if it can.

        These are the settings that are lost when the config is described as `config.json` and read again.
        """
        objective = objective_of(config)
        if not objective.causal:
            return [objective.setting]
        try:
            again = parse_model(self.read(self.described(config.model), config.source), config.source)
        except InputError as error:  # a size that must follow from others there
            return [str(error).removeprefix(f"{config.source}: ")]
        return [
            f"{change.key} = {_shown(change.now)}"
            for change in changes(values_of_causal_model(again), values_of_config(config))
            if change.touches is not None and change.key not in self.ignored
        ]


def _labels(values: Mapping[str, Any]) -> int:
    """The outputs of a classifier, by its `config.json`."""
    labels = values.get("id2label")
    return len(labels) if isinstance(labels, dict) else 2


def activation(values: Mapping[str, Any], name: str, source: str) -> str:
    """Our name of the activation under a key of `config.json`.

    Raises:
        InputError: there is none like it here.
    """
    if values[name] not in [*ACTIVATIONS]:  # a list, as it may be anything
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"{source}: {name} = {json.dumps(values[name])}: only these are supported: {known}")
    return ACTIVATIONS[values[name]]


def whole(values: Mapping[str, Any], name: str, source: str) -> int:
    """The positive whole number under a key of `config.json`.

    Raises:
        InputError: it is something else.
    """
    value = values[name]
    if type(value) is not int or value < 1:
        raise InputError(f"{source}: {name} = {json.dumps(value)}: must be a positive whole number")
    return value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
