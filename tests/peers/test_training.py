"""The same training in PyTorch: equal initial weights and batches give equal losses at every step.

On the other side the model is Hugging Face's, the gradients are torch's, and the optimizer is written out by hand
(tests/support/peers/training.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt_mesh.config import load_config
from gpt_mesh.inputs import TrainingData
from tests.support.models import make_engine, weights_of
from tests.support.outside import ask, hugging_face_keys
from tests.support.runs import Workspace

pytestmark = pytest.mark.peers

STEPS = 100
OPTIMIZER = {"lr": 0.003, "warmup_steps": 10, "weight_decay": 0.1, "gradient_clipping": 0.8, "z_loss": 0.001}
TOLERANCES = {"lr": 1e-6, "loss": 1e-5, "nll": 1e-5, "grad_norm": 1e-4}  # relative, at each step


def test_a_hundred_steps_have_the_same_losses(workspace: Workspace, tmp_path: Path) -> None:
    path = workspace.config(
        "torch", n_embd=64, n_head=4, train_batch_size=8, train_steps=STEPS, embed_dropout=0, **OPTIMIZER
    )
    config = load_config(str(path))
    engine = make_engine(config)
    engine.create_variables(training=True)
    checkpoint = engine.save(str(tmp_path), 0, {})
    with TrainingData(config, progress=False).batches(0, 8) as endless:
        batches = np.stack([next(endless) for _ in range(STEPS)])
    np.save(tmp_path / "batches.npy", batches)
    job = {
        "checkpoint": checkpoint,
        "model": hugging_face_keys(config.model),
        "optimizer": vars(config.optimizer),
        "batches": str(tmp_path / "batches.npy"),
    }
    theirs = ask("training", job, tmp_path)
    steps = [engine.train_step(batch) for batch in batches]
    ours = {name: np.array([float(step[name]) for step in steps]) for name in ("loss", "nll", "grad_norm", "lr")}

    clipped = int((theirs["grad_norm"] > config.optimizer.gradient_clipping).sum())
    for name, tolerance in TOLERANCES.items():
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, err_msg=name)
    assert 10 < clipped < STEPS - 10
    assert theirs["nll"][-10:].mean() < theirs["nll"][0] - 1
    np.testing.assert_allclose(weights_of(engine)["wte"], theirs["transformer.wte.weight"], rtol=0, atol=1e-4)
