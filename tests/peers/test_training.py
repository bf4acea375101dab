"""The same training in PyTorch: equal initial weights and batches give equal losses at every step.

On the other side the model is Hugging Face's, the gradients are torch's, and the optimizer is written out by hand
(tests/support/peers/training.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_mesh.config import Config, load_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.inputs import TrainingData
from gpt_mesh.interop.architectures import ARCHITECTURES
from gpt_mesh.interop.export_model import export_model
from tests.support.families import FAMILIES
from tests.support.models import make_engine, weights_of
from tests.support.outside import ask, hugging_face_keys
from tests.support.runs import Workspace

pytestmark = pytest.mark.peers

STEPS = 100
OPTIMIZER = {"lr": 0.003, "warmup_steps": 10, "weight_decay": 0.1, "gradient_clipping": 0.8, "z_loss": 0.001}
TOLERANCES = {"lr": 1e-6, "loss": 1e-5, "nll": 1e-5, "grad_norm": 1e-4}  # relative, at each step
# Padding has no gradient in the embeddings of transformers, and its balance loss is one over all layers.
SHORT = {"max_position_embeddings": 32, "pad_token_id": None, "router_aux_loss_coef": 0.0}
FAMILIES_COMPARED = [  # relative; rounding may give a token of a mixture another expert
    ("llama", "grouped", 1e-5), ("gpt_neox", "parallel", 1e-5), ("mixtral", "plain", 1e-4),
]  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A model before its first step: its engine, a checkpoint of it, and the batches that it will see."""

    config: Config
    engine: DeviceEngine
    checkpoint: str
    batches: np.ndarray

    @classmethod
    def of(cls, path: Path, folder: Path) -> Start:
        config = load_config(str(path))
        engine = make_engine(config)
        engine.create_variables(training=True)
        checkpoint = engine.save(str(folder), 0, {})
        with TrainingData(config, progress=False).batches(0, 8) as endless:
            batches = np.stack([next(endless) for _ in range(STEPS)])
        np.save(folder / "batches.npy", batches)
        return cls(config, engine, checkpoint, batches)

    def theirs(self, place: Path, **model: Any) -> dict[str, np.ndarray]:
        """What PyTorch makes of the same start. model: where the weights are (tests/support/peers/training.py)."""
        job = {"optimizer": vars(self.config.optimizer), "batches": str(place / "batches.npy"), **model}
        return ask("training", job, place)

    def ours(self) -> dict[str, np.ndarray]:
        steps = [self.engine.train_step(batch) for batch in self.batches]
        return {name: np.array([float(step[name]) for step in steps]) for name in TOLERANCES}


def test_a_hundred_steps_have_the_same_losses(workspace: Workspace, tmp_path: Path) -> None:
    path = workspace.config(
        "torch", n_embd=64, n_head=4, train_batch_size=8, train_steps=STEPS, embed_dropout=0, **OPTIMIZER
    )
    start = Start.of(path, tmp_path)
    theirs = start.theirs(tmp_path, checkpoint=start.checkpoint, model=hugging_face_keys(start.config.model))
    assert_same(start.ours(), theirs, TOLERANCES)
    clipped = int((theirs["grad_norm"] > start.config.optimizer.gradient_clipping).sum())
    assert 10 < clipped < STEPS - 10
    np.testing.assert_allclose(weights_of(start.engine)["wte"], theirs["transformer.wte.weight"], rtol=0, atol=1e-4)


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerances: dict[str, float]) -> None:
    for name, tolerance in tolerances.items():
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, err_msg=name)
    assert theirs["nll"][-10:].mean() < theirs["nll"][0] - 1


@pytest.mark.parametrize(("family", "shape", "tolerance"), FAMILIES_COMPARED)
def test_a_family_has_the_same_losses(
    workspace: Workspace, tmp_path: Path, family: str, shape: str, tolerance: float
) -> None:
    keys = ARCHITECTURES[family].read(FAMILIES[family][shape] | SHORT, family)
    training = {"train_batch_size": 8, "train_steps": STEPS, **OPTIMIZER, "lr": 0.002}
    others = {"embed_dropout": 0, "attention_types": None}
    start = Start.of(workspace.config(f"torch_{family}", **{**others, **keys, **training}), tmp_path)
    export_model(start.config, start.checkpoint, str(tmp_path / "model"), architecture=family)
    tolerances = {"lr": 1e-6, "loss": tolerance, "nll": tolerance}
    assert_same(start.ours(), start.theirs(tmp_path, folder=str(tmp_path / "model")), tolerances)
