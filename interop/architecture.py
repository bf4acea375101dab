"""Base class of Hugging Face architectures: maps their `config.json` and weights to a model's config and weights.

`architectures/` has one file for each, and a table by `model_type`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config import Config, ModelConfig, changes, parse_model, values_of_causal_model, values_of_config
from gpt_mesh.errors import InputError
from gpt_mesh.objectives.registry import objective_of

TOKEN_WEIGHTS = ("gpt2/wte", "gpt2/linear_out/kernel")  # weights with one row per token in a state dict


@dataclass(frozen=True)
class Exchange:
    """One tensor of a Hugging Face state dict, and the weights of this library that it consists of.

    Attributes:
        theirs: name in the state dict, such as "transformer.h.0.attn.attention.q_proj.weight".
        ours: names of the weights, such as ("gpt2/h0/attn/q",).
        pack: computes their array from ours, given in the order of `ours`.
        unpack: the inverse.
    """

    theirs: str
    ours: tuple[str, ...]
    pack: Callable[[Sequence[NDArray]], NDArray]
    unpack: Callable[[NDArray], Sequence[NDArray]]

    def shape(self, sizes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of their tensor; `sizes`: shapes of our weights by name."""
        return self.pack([np.broadcast_to(np.int8(0), sizes[name]) for name in self.ours]).shape


def same(theirs: str, ours: str) -> Exchange:
    """A tensor with the same layout on both sides."""
    return Exchange(theirs, (ours,), lambda arrays: arrays[0], lambda array: [array])


def transposed(theirs: str, ours: str) -> Exchange:
    """A matrix that is [output, input] there (torch.nn.Linear) and [input, output] here."""
    return Exchange(theirs, (ours,), lambda arrays: arrays[0].T, lambda array: [array.T])


class Architecture(ABC):
    """A model family of the `transformers` library.

    Attributes:
        model_type: the value in `config.json`.
        title: name for messages and model cards.
        causal_class: the class that predicts the next token, which exports use.
        base_class: the class without an output layer; its tensor names lack `prefix`.
        prefix: of tensor names.
        expresses: the config keys that its `config.json` can represent, fully or partly. All other keys that affect the
            weights or the computed function must have their default.
    """

    model_type: str
    title: str
    causal_class: str
    base_class: str
    prefix: str
    expresses: frozenset[str]

    @abstractmethod
    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Convert `config.json` to flat config keys.

        Args:
            values: contents of `config.json`.
            source: its path, for messages.

        Raises:
            InputError: a setting is not supported.
        """

    @abstractmethod
    def config_values(self, config: Config) -> dict[str, Any]:
        """The keys of `config.json` that describe the model, for a config that `check` accepts."""

    @abstractmethod
    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        """Every tensor of the state dict, in its order."""

    @abstractmethod
    def check_values(self, config: Config) -> None:
        """Raises InputError if a key in `expresses` has a value that this architecture does not support."""

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of a state dict is not a weight."""
        return False

    def read(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Check that `config.json` describes a readable model of this architecture; returns `model_keys`.

        Raises:
            InputError: another class, quantized weights, or an unsupported setting.
        """
        classes = values.get("architectures") or [self.causal_class]
        if not isinstance(classes, list) or not {self.causal_class, self.base_class} & {*map(str, classes)}:
            raise InputError(f"{source}: architectures = {classes}: only {self.causal_class} can be read")
        if values.get("quantization_config"):
            raise InputError(
                f"{source}: quantization_config: the weights are quantized; use the original model"
            )
        return self.model_keys(values, source)

    def check(self, config: Config) -> None:
        """
        Raises:
            InputError: this architecture cannot represent the model; the message names the key.
        """
        objective = objective_of(config)
        if not objective.causal:
            raise InputError(
                f"{config.source}: {objective.setting}: Hugging Face's {self.title} only attends to earlier tokens, "
                "and cannot represent it"
            )
        for change in changes(values_of_causal_model(_plain(config.model)), values_of_config(config)):
            if change.touches is not None and change.key not in self.expresses:
                now = list(change.now) if isinstance(change.now, tuple) else change.now
                self.refuse(config, change.key, now, "has no such part")
        self.check_values(config)

    def refuse(self, config: Config, key: str, value: Any, problem: str) -> NoReturn:
        """Raise the InputError for a key that this architecture cannot represent."""
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        raise InputError(f"{config.source}: {key} = {shown}: Hugging Face's {self.title} {problem}")


def _plain(model: ModelConfig) -> ModelConfig:
    """A model of the same size with all other keys at their defaults."""
    sizes = {key: getattr(model, key) for key in ("n_layer", "n_head", "n_embd", "n_ctx", "n_vocab")}
    return parse_model(sizes, "a plain model")


def is_finite(array: NDArray) -> bool:
    """Whether all elements are finite. Checked in chunks, to save memory."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[i : i + (1 << 22)]).all()) for i in range(0, flat.size, 1 << 22))
