"""Training, evaluation and sampling through TPUEstimator, on virtual CPU devices, beside the training loop."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import HAS_TPU_ESTIMATOR

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import api
from gpt_mesh.config import GenerationSettings, load_config
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.storage.json_lines import JsonLines
from gpt_mesh.tpu import session
from tests.support.models import ONE_LAYER, cpu_names
from tests.support.runs import Workspace, printed

pytestmark = [
    pytest.mark.tpu_env,
    pytest.mark.skipif(not HAS_TPU_ESTIMATOR, reason="TensorFlow 2.15 has TPUEstimator: make test-tpu"),
]

MESH = {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,vocab:y,intermediate_expanded:y"}
FIGURES = ("loss", "nll", "lr", "grad_norm")
Train = Callable[..., Path]


@pytest.fixture
def train(workspace: Workspace, request: pytest.FixtureRequest) -> Train:
    """Train a small model; returns its directory. tpu: through TPUEstimator. name: of the run; another: another run."""

    def run(name: str, *, tpu: bool, every: int = 10, start_from: Path | None = None, **keys: Any) -> Path:
        case = request.node.name.translate(str.maketrans("[]-", "___"))
        given = {"iterations": 1, "train_steps": 20, "lr_decay_end": 20, **keys}
        config = load_config(str(workspace.config(f"{case}_{name}", **given)))
        directory = Path(config.training.model_path)
        if start_from is not None:
            shutil.copytree(start_from, directory)
        devices = None if tpu else cpu_names(config.mesh.size)
        api.train(config, devices=devices, steps_per_checkpoint=every, tpu="cpu" if tpu else None)
        return directory

    return run


def rows(directory: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return JsonLines(str(directory / file)).rows()


def assert_same_figures(found: Path, expected: Path) -> None:
    """The figures of every step, to float32 rounding."""
    assert [row["step"] for row in rows(found)] == [row["step"] for row in rows(expected)]
    for figure in FIGURES:
        values = [[row[figure] for row in rows(directory)] for directory in (found, expected)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5, atol=1e-9, err_msg=figure)


def weights(directory: Path, step: int) -> dict[str, np.ndarray]:
    reader = tf.compat.v1.train.NewCheckpointReader(str(directory / f"model.ckpt-{step}"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_same_checkpoint(found: Path, expected: Path, step: int) -> None:
    """Variables under the same names with the same values, and the same place in the data."""
    ours, theirs = weights(found, step), weights(expected, step)
    assert ours.keys() == theirs.keys() and "gpt2/wte/adam_v" in ours and "global_step" in ours
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    states = [checkpoints.restore_state(str(d / f"model.ckpt-{step}")) for d in (found, expected)]
    assert states[0]["samples"] == states[1]["samples"] and states[0]["data"] == states[1]["data"]


def assert_same_evaluations(found: Path, expected: Path) -> None:
    for ours, theirs in zip(rows(found, "eval.jsonl"), rows(expected, "eval.jsonl"), strict=True):
        assert ours["task"] == theirs["task"] == "validation"
        figures = {name: value for name, value in ours.items() if isinstance(value, (int, float))}
        assert {"step", "nll", "nll_stderr", "perplexity", "accuracy", "tokens"} <= figures.keys()
        assert figures.keys() == {name for name, value in theirs.items() if isinstance(value, (int, float))}
        assert figures == pytest.approx({name: theirs[name] for name in figures}, rel=1e-5)


def test_a_run_is_that_of_the_loop_step_by_step(train: Train) -> None:
    keys = {"eval_steps": 2, "predict_steps": 1, "predict_max_steps": 12, "predict_batch_size": 2}
    found, expected = train("estimator", tpu=True, **keys), train("loop", tpu=False, **keys)
    assert len(rows(found)) == 20
    assert_same_figures(found, expected)
    assert_same_checkpoint(found, expected, 20)
    assert [row["step"] for row in rows(found, "eval.jsonl")] == [10, 20]
    assert_same_evaluations(found, expected)
    for step in (10, 20):
        texts = [(d / f"predictions/samples_step_{step}.txt").read_text() for d in (found, expected)]
        assert texts[0] == texts[1] and len(texts[0]) > 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {**MESH, "predict_steps": 1, "predict_max_steps": 8, "predict_batch_size": 2, "eval_steps": 1},
        {**MESH, "layout": "batch:x,embd:y,memory_length:y", "recompute_grad": True, "gradient_clipping": None},
        # Without dropout, whose masks differ by the number of microbatches: two of half a batch, four of a whole one.
        {**MESH, "tokens_per_mb_per_replica": 32, "embed_dropout": 0.0, "opt_name": "adafactor", "beta1": 0.0},
        {"mlm_training": True, "mlm_mask_id": 319, "moe_layers": [1], "moe_params": {"moe_num_experts": 2}, **MESH},
    ],
    ids=["mesh", "recompute_unclipped", "microbatches_adafactor", "masked_experts"],
)
def test_so_it_is_on_a_mesh(train: Train, keys: dict[str, Any]) -> None:
    whole = {name: value for name, value in keys.items() if name not in MESH}
    found, expected = train("estimator", tpu=True, **keys), train("loop", tpu=False, **whole)
    assert_same_figures(found, expected)
    assert_same_evaluations(found, expected)


def test_either_goes_on_from_the_others_checkpoint(train: Train) -> None:
    whole = train("whole", tpu=False, **ONE_LAYER)
    for tpu in (True, False):
        half = train(f"half_{tpu}", tpu=tpu, train_steps=10, **ONE_LAYER)
        rest = train(f"rest_{tpu}", tpu=not tpu, start_from=half, **ONE_LAYER)
        assert_same_figures(rest, whole)
        assert_same_checkpoint(rest, whole, 20)


def test_an_interrupted_run_saves_and_goes_on(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole", tpu=True, iterations=5, **ONE_LAYER)
    after_run = session.EndHook.after_run

    def interrupt(hook: session.EndHook, context: Any, values: Any) -> None:
        if context.session.run(tf.compat.v1.train.get_global_step(context.session.graph)) == 7:
            hook._interrupts.request()
        after_run(hook, context, values)

    with monkeypatch.context() as patch:
        patch.setattr(session.EndHook, "after_run", interrupt)
        cut = train("cut", tpu=True, iterations=5, **ONE_LAYER)
    state = checkpoints.restore_state(str(cut / "model.ckpt-7"))
    assert state["samples"] == 28 and state["interval"]["steps"] == 2
    assert [row["step"] for row in rows(cut)] == [5]
    rest = train("rest", tpu=True, iterations=5, start_from=cut, **ONE_LAYER)
    assert_same_figures(rest, whole)  # means over steps 6 to 10, of which 6 and 7 were another session's


def test_narrow_weights_are_widened_and_missing_slots_begin_at_zero(train: Train, workspace: Workspace) -> None:
    """As in the published checkpoint of 1.3 billion parameters."""
    keys = {"train_steps": 2, "lr": 1e-30, "weight_decay": 0.0, **ONE_LAYER}
    run = train("whole", tpu=False, every=2, **keys)
    stored = {name: value for name, value in weights(run, 2).items() if "adam" not in name}
    narrow = {name: tf.constant(x, tf.bfloat16) if x.dtype == np.float32 else x for name, x in stored.items()}
    path = str(run / "model.ckpt-2")
    tf.raw_ops.SaveV2(
        prefix=path, tensor_names=list(narrow), shape_and_slices=[""] * len(narrow), tensors=list(narrow.values())
    )
    on = train("on", tpu=True, every=3, start_from=run, **{**keys, "train_steps": 3})
    for name, value in weights(on, 3).items():
        if name in stored and name != "global_step":
            np.testing.assert_allclose(value, tf.cast(narrow[name], tf.float32).numpy(), rtol=0, atol=1e-20)


def test_a_model_is_evaluated_and_sampled_by_the_command_line(train: Train, workspace: Workspace) -> None:
    run = train("run", tpu=True, every=3, train_steps=3, eval_steps=1, **ONE_LAYER)
    prompt = workspace.root / "estimator_prompt.txt"
    prompt.write_text("def main(")
    for flags in (["--eval"], ["--predict", "--prompt", prompt]):
        given = ("--model", run.with_suffix(".json"), *flags)
        found, expected = (workspace.run(*given, *more, cached=False) for more in (["--tpu", "cpu"], []))
        assert found.returncode == expected.returncode == 0, found.stderr + expected.stderr
        if flags == ["--eval"]:
            assert printed(found.stdout) == pytest.approx(printed(expected.stdout), rel=1e-5)
        else:
            assert found.stdout == expected.stdout and found.stdout.startswith("def main(")
        assert "Traceback" not in found.stderr and "deprecated" not in found.stderr


def test_a_model_does_what_it_does_elsewhere_and_has_no_beams(train: Train, workspace: Workspace) -> None:
    run = train("run", tpu=True, every=3, train_steps=3, **ONE_LAYER)
    with api.load(str(run), tpu="cpu") as ours, api.load(str(run), devices=cpu_names(1)) as theirs:
        models = (ours, theirs)
        tokens = np.arange(12).reshape(2, 6)
        np.testing.assert_allclose(ours.logits(tokens), theirs.logits(tokens), atol=1e-4)
        scores = [model.score(["def main(x):\n    return x\n"])[0] for model in models]
        assert scores[0].sum == pytest.approx(scores[1].sum, rel=1e-5)
        found, expected = (next(model.scorer(3).score([[5, 6, 7, 8]])) for model in models)
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
        np.testing.assert_array_equal(found.top_tokens, expected.top_tokens)
        settings = GenerationSettings(max_new_tokens=5, seed=3, logprobs=2)
        requests = [GenerationRequest(text, settings) for text in ("import os", "x")]
        generated = [model.generator().generate(requests) for model in models]
        for one, other in zip(*generated, strict=True):
            assert one.tokens == other.tokens and one.finish_reason == other.finish_reason
            assert one.logprobs is not None and other.logprobs is not None
            assert [x.logprob for x in one.logprobs] == pytest.approx([x.logprob for x in other.logprobs], abs=1e-4)
        with pytest.raises(InputError, match=r"num_beams = 2: the device .* cannot reorder a batch"):
            ours.generate(["x"], num_beams=2, max_new_tokens=3)


def test_tensorboard_gets_what_the_loop_writes(train: Train) -> None:
    run = train("run", tpu=True, every=3, train_steps=3, **ONE_LAYER)
    found: dict[str, list[int]] = {}
    for path in run.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    assert {f"training/{name}" for name in FIGURES} <= found.keys()
    assert sorted(found["training/loss"]) == [1, 2, 3]


def test_what_goes_wrong_with_the_data_is_told(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt_mesh.inputs import TrainingData

    batch = TrainingData.batch

    def broken(data: TrainingData, position: int, size: int) -> Any:
        if position + size > 20:  # several batches may be drawn in one call
            raise OSError("the disk is gone")
        return batch(data, position, size)

    monkeypatch.setattr(TrainingData, "batch", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        train("run", tpu=True, train_steps=20, **ONE_LAYER)


def test_a_loss_that_is_no_number_ends_the_run_with_an_error(train: Train) -> None:
    with pytest.raises(InputError, match=r"the loss became nan by step .*lower lr"):
        train("run", tpu=True, lr=1e30, warmup_steps=0, gradient_clipping=None, **ONE_LAYER)
