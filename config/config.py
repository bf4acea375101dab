"""A whole config: its groups of keys, its datasets and the file it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_mesh.config.data import DataConfig
from gpt_mesh.config.fields import Group
from gpt_mesh.config.mesh import MeshConfig
from gpt_mesh.config.mlm import MlmConfig
from gpt_mesh.config.model import ModelConfig
from gpt_mesh.config.optimizer import OptimizerConfig
from gpt_mesh.config.preferences import PreferenceConfig
from gpt_mesh.config.training import TrainingConfig


@dataclass(frozen=True)
class Config:
    """A checked model config with its datasets.

    Attributes:
        source: the file it came from, for messages; a `source.Source` where it is laid over others.
        directory: where its dataset configs are looked for first.
        given: the keys that were written, with their values as JSON has them.
    """

    source: str
    model: ModelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    data: DataConfig
    mlm: MlmConfig
    preferences: PreferenceConfig
    mesh: MeshConfig
    directory: Path | None = dataclasses.field(default=None, compare=False, repr=False)
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Every key with its effective value, flat and JSON-ready; `parse_config` reads it to an equal config."""
        flat: dict[str, Any] = {}
        for name in GROUPS:
            group: Group = getattr(self, name)
            flat |= group.model_dump(mode="json")
        return flat


GROUPS: dict[str, type[Group]] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "data": DataConfig,
    "mlm": MlmConfig,
    "preferences": PreferenceConfig,
    "mesh": MeshConfig,
}
