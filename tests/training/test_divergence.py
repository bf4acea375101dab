"""Steps that are not finite: skipped without a trace, or the end of the run with what is needed to look at them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import api
from gpt_mesh.config import load_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import TrainingData
from gpt_mesh.training.divergence import LEAST, StepJudge
from gpt_mesh.training.interval import Interval
from tests.support.models import ONE_LAYER, make_engine, tiny_config, token_batch
from tests.support.runs import Run, Workspace, logged, rows

SKIP = {"on_nonfinite": "skip"}
TWO = {"mesh_shape": "x:2", "layout": "batch:x"}


def arrays(engine: DeviceEngine) -> dict[str, bytes]:
    engine.store.gather()
    return {name: variable.numpy().tobytes() for name, variable in engine.store.masters.items()}


@pytest.mark.parametrize(
    "keys",
    [
        {"n_embd": 128, "n_vocab": 256},  # large enough for the C kernels
        pytest.param({"precision": "bfloat16", "opt_name": "adafactor", "beta1": 0.5}, marks=pytest.mark.slow),
        pytest.param({"tokens_per_mb_per_replica": 16, "opt_name": "adafactor"}, marks=pytest.mark.slow),
        pytest.param({**TWO, "split_optimizer_state": True}, marks=pytest.mark.slow),
        pytest.param({**TWO, "tokens_per_mb_per_replica": 16, "gradient_clipping": None}, marks=pytest.mark.slow),
        pytest.param({"mesh_shape": "x:2", "layout": "heads:x,vocab:x"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_skipped_step_changes_nothing(keys: dict[str, Any]) -> None:
    """And without such a step, training is the same as with `stop`: bit for bit; or to rounding, with Adafactor, whose
    means XLA then sums in another order.
    """
    engine, plain = (make_engine(tiny_config(**ONE_LAYER, **keys, on_nonfinite=name)) for name in ("skip", "stop"))
    for number in range(2):
        for one in (engine, plain):
            assert math.isfinite(float(one.train_step(token_batch(one.config, number))["loss"]))
    before, others = arrays(engine), arrays(plain)
    if engine.config.optimizer.opt_name == "adafactor":
        for name in {*before} - {"global_step"}:
            found, wanted = (np.frombuffer(one[name], np.float32) for one in (before, others))
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6, err_msg=name)
    else:
        assert before == others
    gain = engine.store.masters["gpt2/ln_f/g"]
    good = gain.numpy()
    gain.assign(np.full_like(good, 3e38))
    engine.store.scatter()
    damaged = arrays(engine)
    out = engine.train_step(token_batch(engine.config, 2))
    assert not (math.isfinite(float(out["loss"])) and math.isfinite(float(out["grad_norm"])))
    after = arrays(engine)
    assert np.frombuffer(after.pop("global_step"), np.int64) == 3 and damaged.pop("global_step") is not None
    assert after == damaged
    gain.assign(good)
    engine.store.scatter()
    assert engine.nonfinite_variables() == []
    for number in (3, 4):
        assert math.isfinite(float(engine.train_step(token_batch(engine.config, number))["loss"]))
    assert arrays(engine) != before


def test_variables_that_are_not_finite_are_named() -> None:
    engine = make_engine(tiny_config(**ONE_LAYER), compiled=False)
    engine.create_variables(training=True)
    assert engine.nonfinite_variables() == []
    for name, value in (("gpt2/wpe", np.nan), ("gpt2/ln_f/g", 1e30), ("gpt2/wte/adam_v", 1e30)):
        variable = engine.store.masters[name]
        variable.assign(tf.fill(variable.shape, tf.constant(value, tf.float32)))
    assert sorted(engine.nonfinite_variables()) == ["gpt2/ln_f/g", "gpt2/wpe"]  # a large square of a gradient may be


def test_a_run_stops_there_and_goes_on_from_a_good_checkpoint(workspace: Workspace, run: Run) -> None:
    keys = {"warmup_steps": 0, "lr_decay": "none", "gradient_clipping": None, "iterations": 1, "eval_steps": 0}
    path = workspace.config("diverges", **keys, train_steps=4)
    folder = workspace.root / "diverges"
    assert run("--model", path, "--steps_per_checkpoint", 2)[0] == 0
    workspace.config("diverges", **keys, train_steps=8, lr=1e30)
    status, _, err = run("--model", path, "--steps_per_checkpoint", 1)
    last = err.splitlines()[-1]
    assert status == 1 and "after step 5" in last and f"the newest checkpoint is {folder}/model.ckpt-4" in last, err
    dump = json.loads((folder / "nonfinite.json").read_text())
    assert (dump["step"], dump["first_sample"], dump["samples"]) == (5, 16, 4)
    status, _, err = run("--model", path, "--steps_per_checkpoint", 8)
    assert status == 1 and "the loss of step 6 is nan" in err.splitlines()[-1], err
    assert f"the newest checkpoint is {folder}/model.ckpt-4" in err.splitlines()[-1]
    status, out, err = run("--model", path, "--replay_step", 6)
    assert status == 0 and "on samples 20 to 23: loss nan" in out and "! activation/h0" in out, err
    assert not (folder / "model.ckpt-6.index").exists()
    workspace.config("diverges", **keys, train_steps=8)
    assert run("--model", path)[0] == 0
    metrics = rows(folder / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 9))
    status, out, err = run("--model", folder / "model.ckpt-4", "--replay_step", 7)
    row = metrics[6]
    assert status == 0, err
    assert f"loss {row['loss']:.6g}, gradient norm {row['grad_norm']:.6g}, lr {row['lr']:.3g}" in out
    assert "  activation/ln_f" in out and "  gradient/gpt2/h1/attn/q" in out and "!" not in out


def test_skipped_steps_are_counted_and_too_many_end_the_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.config("skips", **SKIP, max_nonfinite_steps=3, train_steps=9, eval_steps=0)
    real, calls = DeviceEngine.train_step, []

    def some_not_finite(engine: DeviceEngine, tokens: Any) -> dict[str, tf.Tensor]:
        calls.append(1)
        out = real(engine, tokens)
        return out if len(calls) not in bad else {**out, "grad_norm": tf.constant(np.inf, tf.float32)}

    monkeypatch.setattr(DeviceEngine, "train_step", some_not_finite)
    bad: tuple[int, ...] = (2, 4, 5)
    with logged() as messages:
        api.train(load_config(str(path)))
    assert [row["skipped_steps"] for row in rows(workspace.root / "skips" / "metrics.jsonl")] == [1, 2, 0]
    assert sum("its batch is skipped" in message for message in messages) == 3
    bad = tuple(range(1, 9))
    calls.clear()
    with pytest.raises(InputError, match=r"skipped step 3 in a row \(max_nonfinite_steps\)"):
        api.train(load_config(str(path)), new=True)


def test_means_leave_out_skipped_steps() -> None:
    interval = Interval()
    for loss, norm in ((1.0, 1.0), (np.nan, 1.0), (3.0, 1.0), (2.0, np.inf)):
        interval.pending.append({"loss": tf.constant(loss), "grad_norm": tf.constant(norm)})
    assert len(interval.fetch()) == 4
    assert (interval.steps, interval.skipped, interval.values()["loss"]) == (2, 2, 2.0)
    again = Interval.of(json.loads(json.dumps(interval.state())))
    assert (again.steps, again.skipped, again.values()) == (2, 2, {"loss": 2.0})


def test_spikes_are_logged_once(workspace: Workspace) -> None:
    config = load_config(str(workspace.config("spikes")))
    watch = StepJudge(config, TrainingData(config))
    noise = np.random.default_rng(0).normal(3.0, 0.05, 300)
    with logged() as messages:
        for step, loss in enumerate(noise, 1):
            watch.check(step, 4 * step, {"loss": float(loss), "grad_norm": 1.0}, None)
        assert messages == []
        for step, loss in ((301, 5.0), (302, 5.1), (303, 3.0), (304, 6.0)):
            watch.check(step, 4 * step, {"loss": loss, "grad_norm": 1.0}, None)
    assert [message.split(":")[0] for message in messages] == ["step 301", "step 304"]
    assert "the loss 5.0000 is a spike" in messages[0] and len(noise) > LEAST


def test_the_folder_of_a_replay_stays_as_it_is(workspace: Workspace, run: Run) -> None:
    path = workspace.config("replayed", train_steps=3, eval_steps=0)
    assert run("--model", path)[0] == 0
    folder = workspace.root / "replayed"

    def files(folder: Path) -> dict[str, bytes]:
        return {str(one): one.read_bytes() for one in folder.rglob("*") if one.is_file()}

    before = files(folder)
    assert run("--model", path, "--replay_step", 4)[0] == 0
    assert files(folder) == before
    status, _, err = run("--model", folder / "model.ckpt-3", "--replay_step", 3)
    assert status == 1 and "is not before that step" in err
