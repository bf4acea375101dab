"""Where the demo keeps its files, and the config that it trains.

In configs/demo.json most layers see four positions only. With GPT-Neo's initial weights, a layer that sees many
positions adds more of their mean than of the token itself, and a short run ends before that is unlearned. Training nll
around step 400: 4.83; with lr 0.004 5.11; with [global, local over 64] and lr 0.001 5.31, lr 0.004 5.75.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.screen import REPOSITORY
from gpt_mesh.data.encoders import TOKENIZER_FILE

# --smoke: everything at its smallest, in which only the steps from one to the next are of interest.
SMOKE = {
    "n_layer": 2,
    "attention_types": [[["local", "global"], 1]],
    "n_embd": 32,
    "n_ctx": 64,
    "warmup_steps": 5,
    "train_steps": 40,
    "iterations": 5,
    "predict_max_steps": 20,
}
SMOKE_FILES = 40


@dataclass(frozen=True)
class Demo:
    """Where one demo keeps its files, checkpoints among them, and what it trains."""

    folder: Path
    config: Path
    values: dict[str, Any]  # of the config

    @property
    def text(self) -> Path:
        return self.folder / "text"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer" / TOKENIZER_FILE

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def steps(self) -> int:
        """Steps that the model is to be trained."""
        return int(self.values["train_steps"])

    def trained_steps(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        names = (path.name for path in self.folder.glob("model.ckpt-*.index"))
        return max((int(name.removeprefix("model.ckpt-").removesuffix(".index")) for name in names), default=0)

    def read(self, part: str) -> list[bytes]:
        """The documents of `train` or `held_out`, sorted by name."""
        return [path.read_bytes() for path in sorted((self.text / part).rglob("*.py"))]


def set_up(folder: Path, smoke: bool) -> Demo:
    """The demo of configs/demo.json; in another folder than it names, or smaller, that of a config written there."""
    shipped = REPOSITORY / "configs" / "demo.json"
    values = json.loads(shipped.read_text())
    if not smoke and folder == REPOSITORY / values["model_path"]:
        return Demo(folder, shipped, values)
    values |= {"model_path": str(folder)} | (SMOKE if smoke else {})
    demo = Demo(folder, folder / "demo.json", values)
    dataset = json.loads((shipped.parent / "dataset_configs" / "demo.json").read_text())
    dataset |= {
        "path": str(demo.data / "train_*.tfrecords"),
        "eval_path": str(demo.data / "held_out_*.tfrecords"),
        "tokenizer_path": str(demo.tokenizer),
    }
    (folder / "dataset_configs").mkdir(parents=True, exist_ok=True)
    (folder / "dataset_configs" / "demo.json").write_text(json.dumps(dataset, indent=4))
    demo.config.write_text(json.dumps(values, indent=4))
    return demo


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json(path: Path, value: object) -> None:
    """All of it or nothing: the file says that a step is done."""
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text(json.dumps(value, indent=4) + "\n")
    temporary.replace(path)
