"""Small GPT-Neos in Hugging Face's files, written without it: safetensors, shards, or a `.bin` as PyTorch makes it."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gpt_mesh.config import parse_model
from gpt_mesh.interop.architectures.gpt_neo import GPTNeo
from gpt_mesh.interop.weights import weight_sizes

CONFIG: dict[str, Any] = {
    "model_type": "gpt_neo",
    "architectures": ["GPTNeoForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 8,
    "max_position_embeddings": 32,
    "eos_token_id": 0,
}


def random_state(**keys: Any) -> dict[str, np.ndarray]:
    """A state dict of random weights for CONFIG with these keys changed."""
    rng = np.random.default_rng(0)
    model = parse_model(GPTNeo().read(CONFIG | keys, "made up"), "made up")
    sizes = weight_sizes(model)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for exchange in GPTNeo().exchanges(model)
        for name, shape in zip(exchange.theirs, exchange.shapes(sizes), strict=True)
    }


def write_folder(
    folder: Path,
    tokenizer: Path | None,
    *,
    form: str = "safetensors",
    state: Mapping[str, np.ndarray] | None = None,
    **keys: Any,
) -> Path:
    """A model's folder. form: "safetensors", "shards" or "bin". keys: of config.json, in place of CONFIG's."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | keys))
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    arrays = {name: np.ascontiguousarray(array) for name, array in (state or random_state(**keys)).items()}
    if form == "bin":
        write_torch(folder / "pytorch_model.bin", arrays)
    elif form == "safetensors":
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        places = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(arrays)}
        for file in set(places.values()):
            save_file({name: arrays[name] for name in arrays if places[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


_PythonPickler: Any = pickle._Pickler  # type: ignore[attr-defined, unused-ignore]  # that in C takes no such save()


class _Global:
    """Pickled as a name of PyTorch's."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Storage:
    def __init__(self, key: str, size: int) -> None:
        self.key, self.size = key, size


class _Tensor:
    def __init__(self, storage: _Storage, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.shape, self.strides = storage, shape, strides


class _Pickler(_PythonPickler):
    """Writes those three as PyTorch does."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", _Global("torch", "FloatStorage"), obj.key, "cpu", obj.size)
        return None

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, _Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Tensor):
            self.save(_Global("torch._utils", "_rebuild_tensor_v2"))
            self.save((obj.storage, 0, obj.shape, obj.strides, False, OrderedDict()))
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def write_torch(path: Path, arrays: Mapping[str, np.ndarray], beside: Mapping[str, Any] | None = None) -> None:
    """What torch.save makes of a state dict of float32 tensors; or of a dictionary with it under "module", as DeepSpeed
    saves it, with other things `beside` it.
    """
    tensors: OrderedDict[str, _Tensor] = OrderedDict()
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, array) in enumerate(arrays.items()):
            strides = tuple(stride // 4 for stride in array.strides)
            tensors[name] = _Tensor(_Storage(str(i), array.size), array.shape, strides)
            archive.writestr(f"archive/data/{i}", array.tobytes())
        with archive.open("archive/data.pkl", "w") as file:
            _Pickler(file, protocol=2).dump(tensors if beside is None else {"module": tensors, **beside})
        archive.writestr("archive/byteorder", "little")
