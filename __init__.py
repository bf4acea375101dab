"""GPT-style language models on mesh-tensorflow: train, evaluate, generate, score, serve, export.

>>> import gpt_mesh
>>> model = gpt_mesh.train(data=[open("my_text.txt").read()], train_steps=1000).model
>>> model.generate("Once upon a time", max_new_tokens=40)
>>> model.save("my_model")
>>> model = gpt_mesh.load("my_model")

Importing this package imports nothing else and changes nothing in the process. TensorFlow is loaded when a model is
first touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_mesh.api import Event, Model, evaluate, load, train
    from gpt_mesh.config import ModelConfig, load_config
    from gpt_mesh.errors import InputError

__version__ = "0.2.0"
__all__ = [
    "Event", "InputError", "Model", "ModelConfig", "__version__", "evaluate", "load", "load_config", "train",
]  # fmt: skip

_HOMES = {
    "Event": "api", "InputError": "errors", "Model": "api", "ModelConfig": "config", "evaluate": "api", "load": "api",
    "load_config": "config", "train": "api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"gpt_mesh.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gpt_mesh' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
