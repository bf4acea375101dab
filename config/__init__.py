"""Model and dataset configs: every key declared once, checked whole before any graph is built."""

from gpt_mesh.config.changes import Change, changes, values_of_causal_model, values_of_config, values_of_file
from gpt_mesh.config.config import GROUPS, Config
from gpt_mesh.config.data import DataConfig, DatasetUse
from gpt_mesh.config.dataset import DatasetConfig
from gpt_mesh.config.fields import Group, keys
from gpt_mesh.config.files import CONFIG_DIRECTORY, SUFFIXES, parse_json, shipped_configs
from gpt_mesh.config.generation import GenerationSettings
from gpt_mesh.config.layers import Layer, layers_of, merged, origins_line, parse_settings
from gpt_mesh.config.mesh import TENSOR_DIMENSIONS, MeshConfig
from gpt_mesh.config.mlm import MlmConfig
from gpt_mesh.config.model import ACTIVATIONS, ATTENTION_TYPES, NORMS, POSITION_EMBEDDINGS, ModelConfig
from gpt_mesh.config.moe import MoeParams
from gpt_mesh.config.names import ALIASES, RETIRED_KEYS
from gpt_mesh.config.optimizer import OPTIMIZERS, SCHEDULES, OptimizerConfig
from gpt_mesh.config.parsing import (
    generation_settings,
    load_config,
    parse_config,
    parse_groups,
    parse_layers,
    parse_model,
    replace,
    with_settings,
)
from gpt_mesh.config.preferences import DPO_LOSSES, PreferenceConfig
from gpt_mesh.config.rope import ROPE_TYPES, RopeScaling
from gpt_mesh.config.source import file_of
from gpt_mesh.config.training import EVAL_TASKS, OBJECTIVES, TrainingConfig

__all__ = [
    "ACTIVATIONS", "ALIASES", "ATTENTION_TYPES", "CONFIG_DIRECTORY", "DPO_LOSSES", "EVAL_TASKS", "GROUPS", "NORMS",
    "OBJECTIVES", "OPTIMIZERS", "POSITION_EMBEDDINGS", "RETIRED_KEYS", "ROPE_TYPES", "SCHEDULES", "SUFFIXES",
    "TENSOR_DIMENSIONS", "Change", "Config", "DataConfig", "DatasetConfig", "DatasetUse", "GenerationSettings",
    "Group", "Layer", "MeshConfig", "MlmConfig", "ModelConfig", "MoeParams", "OptimizerConfig", "PreferenceConfig",
    "RopeScaling", "TrainingConfig", "changes", "file_of", "generation_settings", "keys", "layers_of", "load_config",
    "merged", "origins_line", "parse_config", "parse_groups", "parse_json", "parse_layers", "parse_model",
    "parse_settings", "replace", "shipped_configs", "values_of_causal_model", "values_of_config", "values_of_file",
    "with_settings",
]  # fmt: skip
