"""What a Hugging Face architecture is here: how its `config.json` and its weights correspond to a model's own.

`architectures/` has one file for each, and a table of them by `model_type`.
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

TOKEN_WEIGHTS = ("gpt2/wte", "gpt2/linear_out/kernel")  # weights that have a row per token in a state dict


@dataclass(frozen=True)
class Exchange:
    """One tensor of a state dict and the weights here that it consists of.

    Attributes:
        theirs: such as "transformer.h.0.attn.attention.q_proj.weight".
        ours: such as ("gpt2/h0/attn/q",).
        pack: makes their array of ours, in the order of `ours`.
        unpack: the inverse.
    """

    theirs: str
    ours: tuple[str, ...]
    pack: Callable[[Sequence[NDArray]], NDArray]
    unpack: Callable[[NDArray], Sequence[NDArray]]

    def shape(self, sizes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of their tensor, for the shapes of weights here by name."""
        return self.pack([np.broadcast_to(np.int8(0), sizes[name]) for name in self.ours]).shape


def same(theirs: str, ours: str) -> Exchange:
    """A tensor that both sides store alike."""
    return Exchange(theirs, (ours,), lambda arrays: arrays[0], lambda array: [array])


def transposed(theirs: str, ours: str) -> Exchange:
    """A matrix stored as output x input there (torch.nn.Linear) and as input x output here."""
    return Exchange(theirs, (ours,), lambda arrays: arrays[0].T, lambda array: [array.T])


class Architecture(ABC):
    """A model family of the `transformers` library.

    Attributes:
        model_type: as `config.json` has it.
        title: for messages and model cards.
        causal_class: the class that predicts the next token; exports name it.
        base_class: the class without an output layer; its tensor names lack `prefix`.
        prefix: of tensor names.
        expresses: the keys of a config that its `config.json` can hold, in full or in part. All others that touch a
            model's weights or what it computes must have their default.
    """

    model_type: str
    title: str
    causal_class: str
    base_class: str
    prefix: str
    expresses: frozenset[str]

    @abstractmethod
    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The architecture as flat keys of a config here.

        Args:
            values: what is in `config.json`.
            source: that file, for messages.

        Raises:
            InputError: a setting that no model here has.
        """

    @abstractmethod
    def config_values(self, config: Config) -> dict[str, Any]:
        """The keys of `config.json` that describe the model, for a config that `check` accepts."""

    @abstractmethod
    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        """Every tensor of the state dict, in its order."""

    @abstractmethod
    def check_values(self, config: Config) -> None:
        """Raises InputError for a value of a field in `expresses` that this architecture does not know."""

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of a state dict is not a weight."""
        return False

    def read(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """`model_keys`, once `config.json` is known to describe a model of this kind that has weights to read.

        Raises:
            InputError: another class, quantized weights, or a setting that no model here has.
        """
        classes = values.get("architectures") or [self.causal_class]
        if not isinstance(classes, list) or not {self.causal_class, self.base_class} & {*map(str, classes)}:
            raise InputError(f"{source}: architectures = {classes}: only {self.causal_class} can be read")
        if values.get("quantization_config"):
            raise InputError(
                f"{source}: quantization_config: the weights are quantized; take the model as it was before"
            )
        return self.model_keys(values, source)

    def check(self, config: Config) -> None:
        """
        Raises:
            InputError: the model has something that this architecture has not; the message names the key.
        """
        objective = objective_of(config)
        if not objective.causal:
            raise InputError(
                f"{config.source}: {objective.setting}: Hugging Face's {self.title} attends to what came before only, "
                "and cannot hold it"
            )
        for change in changes(values_of_causal_model(_plain(config.model)), values_of_config(config)):
            if change.touches is not None and change.key not in self.expresses:
                now = list(change.now) if isinstance(change.now, tuple) else change.now
                self.refuse(config, change.key, now, "has no such part")
        self.check_values(config)

    def refuse(self, config: Config, key: str, value: Any, problem: str) -> NoReturn:
        """Raise the InputError about a key that this architecture cannot express."""
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        raise InputError(f"{config.source}: {key} = {shown}: Hugging Face's {self.title} {problem}, and cannot hold it")


def _plain(model: ModelConfig) -> ModelConfig:
    """A model of the same sizes with everything else at its default."""
    sizes = {key: getattr(model, key) for key in ("n_layer", "n_head", "n_embd", "n_ctx", "n_vocab")}
    return parse_model(sizes, "a plain model")


def is_finite(array: NDArray) -> bool:
    """Whether every element is a finite number. In pieces, so that little memory is taken."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[i : i + (1 << 22)]).all()) for i in range(0, flat.size, 1 << 22))
