"""The same learning from preferences here and elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpt_mesh.config import Config
from gpt_mesh.engine import checkpoints
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.interop.export_model import export_model
from gpt_mesh.models.context import REFERENCE
from tests.support.models import make_engine
from tests.support.preferences import random_pairs, set_weights

_STEADY = {"lr": 1e-3, "lr_decay": "none", "warmup_steps": 0, "weight_decay": 0.1, "gradient_clipping": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"objective": "dpo", "dpo_beta": 0.3, "dpo_label_smoothing": 0.1, **_STEADY},
    "free": {"objective": "dpo", "dpo_reference_free": True, **_STEADY},
    "ipo": {"objective": "dpo", "dpo_loss": "ipo", "dpo_beta": 0.5, **_STEADY},
    "hinge": {"objective": "dpo", "dpo_loss": "hinge", "dpo_beta": 0.05, **_STEADY},
    "kto": {"objective": "kto", "kto_beta": 0.2, "kto_desirable_weight": 1.5, "kto_undesirable_weight": 0.7, **_STEADY},
    "reward": {"objective": "reward", "reward_centering": 0.01, **_STEADY},
}
BATCHES = 4  # different ones, in turn: so that there is something to learn


def job_of(config: Config, folder: Path, steps: int) -> tuple[dict[str, Any], DeviceEngine]:
    """A job for the peers (tests/support/peers/preferences.py), and an engine that begins where it begins."""
    engine = make_engine(config)
    engine.create_variables(training=True)
    set_weights(engine)
    single = config.training.objective == "kto"
    batches = np.stack([random_pairs(config, step % BATCHES, single=single) for step in range(steps)])
    np.save(folder / "batches.npy", batches)
    values = engine.snapshot()
    job = {
        "objective": config.training.objective,
        "settings": config.preferences.model_dump(mode="json"),
        "optimizer": config.optimizer.model_dump(mode="json"),
        "batches": str(folder / "batches.npy"),
    }
    for name, prefix in (("policy", ""), ("reference", REFERENCE)):
        weights = {one.removeprefix(prefix): value for one, value in values.items() if one.startswith(f"{prefix}gpt2/")}
        if not weights:
            continue
        place = folder / name
        place.mkdir()
        path = checkpoints.save(str(place), 0, {**weights, "global_step": values["global_step"]}, {})
        exported = str(folder / f"{name}_model")
        export_model(config, path, exported)
        job[name] = exported
    return job, engine


def our_steps(engine: DeviceEngine, batches: np.ndarray) -> dict[str, np.ndarray]:
    """What the engine tells of each step."""
    steps = [{name: float(value) for name, value in engine.train_step(batch).items()} for batch in batches]
    return {name: np.array([step[name] for step in steps]) for name in steps[0]}
