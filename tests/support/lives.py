"""A model's life from config to text: built, trained, saved, restored, decoded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_mesh.config import Config, parse_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import MeshPlan, choose_devices
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.sample import Row
from tests.support.decoding import generate
from tests.support.models import cpu_names, enlarge_weights, token_batch

SOURCE = "random.json"
# How far rounding may put the logit of a token that decoding chose below that of the likeliest of the full pass.
# Logits are a few units wide.
TIE = {"float32": 1e-3, "bfloat16": 0.5}


@dataclass(frozen=True)
class Accepted:
    """A config that the product takes, and where it runs."""

    config: Config
    plan: MeshPlan

    def engine(self) -> DeviceEngine:
        return DeviceEngine(self.config, self.plan, compiled=False)


def accepted(values: Mapping[str, Any]) -> Accepted | InputError:
    """What becomes of flat keys before any graph is built, as in `api.train`, on as many CPU devices as asked for."""
    try:
        config = parse_config(values, SOURCE, Path(__file__).parent)
        devices = choose_devices(cpu_names(min(config.mesh.size, 8)))
        return Accepted(config, plan_mesh(config, limits_of(config), devices, fit=False, chosen=True))
    except InputError as refusal:
        return refusal


def live(model: Accepted, directory: Path, *, afresh: bool) -> None:
    """All of it, with a check of each step.

    afresh: restore into a new engine, not into the one that saved and has trained on since; takes twice as long.
    """
    engine = model.engine()
    step(engine, 0)
    step(engine, 1)
    # As trained for longer: weights so large that every part of the model matters.
    engine.store.gather()
    enlarge_weights(engine)
    saved = engine.save(str(directory), 2, {})
    kept = arrays(engine)
    loss = step(engine, 2)
    if afresh:
        engine = model.engine()
        engine.create_variables(training=True)
    assert engine.restore(saved) == []
    restored = arrays(engine)
    assert restored == kept, sorted(name for name in kept if kept[name] != restored.get(name))
    assert step(engine, 2) == loss, "a restored model goes on as if it had not stopped"
    if model.config.mlm.mlm_training:
        check_evaluation(engine)
    else:
        check_decoding(engine)


def arrays(engine: DeviceEngine) -> dict[str, bytes]:
    """Every variable's bits."""
    engine.store.gather()
    return {name: variable.numpy().tobytes() for name, variable in engine.store.masters.items()}


def step(engine: DeviceEngine, number: int) -> float:
    """The loss of a training step; everything that it reports is a finite number."""
    out = {name: float(x) for name, x in engine.train_step(token_batch(engine.config, number)).items()}
    assert all(math.isfinite(x) for x in out.values()), out
    engine.store.gather()  # on a mesh each device counts
    assert int(engine.global_step) == number + 1
    return out["loss"]


def check_evaluation(engine: DeviceEngine) -> None:
    """Sums over a batch: of NLL, of right answers, and of tokens."""
    tokens = token_batch(engine.config)
    nll, correct, count = (float(np.sum(x)) for x in engine.eval_step(tokens, np.ones_like(tokens[:, 1:], np.float32)))
    assert math.isfinite(nll)
    assert nll >= 0
    assert 0 <= correct <= count <= tokens[:, 1:].size


def check_decoding(engine: DeviceEngine) -> None:
    """Greedy tokens are the likeliest of a full pass; drawn ones, by softmax or by entmax, are in the vocabulary."""
    model = engine.config.model
    sparse = engine.config.training.seed == 1
    prompts = [token_batch(engine.config)[0, :width].tolist() for width in (1, model.n_ctx - 2)]
    requests = [Row(prompt, model.n_ctx, seed) for seed, prompt in enumerate(prompts)]
    found = generate(engine, requests, 0.0, batch=2, sparse=sparse)
    rows = [prompt + new for prompt, new in zip(prompts, found, strict=True)]
    logits = engine.logits(np.array(rows, np.int32)).numpy()
    for prompt, row, scores in zip(prompts, rows, logits, strict=True):
        for place in range(len(prompt), model.n_ctx):
            behind = scores[place - 1].max() - scores[place - 1, row[place]]
            assert behind <= TIE[engine.config.training.precision], (place, row, behind)
    for row in generate(engine, requests, 1.0, batch=2, sparse=sparse):
        assert all(0 <= token < model.n_vocab for token in row)
