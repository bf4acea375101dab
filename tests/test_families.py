"""The configs of the demo's family, trained, scored and sampled by the command line as they are shipped."""

from __future__ import annotations

import json
import math

import pytest

from tests.support.runs import REPOSITORY, rows

FAMILIES = ["demo_mlm", "demo_moe"]
MORE_FAMILIES = ["demo_linear", "demo_par", "demo_rotary"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in MORE_FAMILIES)]
)
def test_a_family_runs(name, workspace):
    shipped = json.loads((REPOSITORY / "configs" / f"{name}.json").read_text())
    assert shipped["datasets"] == [["demo", 16, "documents_random", 1.0]]
    # Everything of the model is as shipped; the data is the tests'.
    short = {"train_steps": 12, "iterations": 4, "eval_steps": 1, "warmup_steps": 4, "lr_decay_end": 100}
    other = {"datasets": [["tiny", 2, "documents_random", 1.0]], "model_path": str(workspace.root / name)}
    config = workspace.root / f"{name}.json"
    config.write_text(json.dumps(shipped | short | other))

    trained = workspace.run("--model", config)
    assert trained.returncode == 0, trained.stderr
    log = rows(workspace.root / name / "metrics.jsonl")
    assert [row["step"] for row in log] == [4, 8, 12]
    assert all(math.isfinite(row[key]) for row in log for key in ("loss", "nll", "grad_norm"))
    assert log[-1]["nll"] < log[0]["nll"]
    (score,) = rows(workspace.root / name / "eval.jsonl")
    assert score["nll"] < math.log(shipped["n_vocab"]) and 0 <= score["accuracy"] <= 1
    if name == "demo_moe":
        assert {"load/h1/0", "load/h3/3", "balance_loss"} <= log[-1].keys()

    prompt = workspace.root / f"{name}.txt"
    prompt.write_text("import email\n")
    sampled = workspace.run("--model", config, "--predict", "--prompt", prompt)
    if name == "demo_mlm":  # masked tokens are filled from both sides: there is no next one
        assert sampled.returncode == 1 and "mlm_training" in sampled.stderr
    else:
        assert sampled.returncode == 0 and len(sampled.stdout) > 20, sampled.stderr
