"""Every Hugging Face family through every command: what a user does with a downloaded model, from the import to the
export, on this machine and on a mesh.
"""

from __future__ import annotations

import json
import math
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from gpt_mesh import api
from gpt_mesh.config import GenerationSettings, parse_model
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.interop import huggingface
from gpt_mesh.interop.architectures import ARCHITECTURES
from gpt_mesh.interop.weights import weight_sizes
from gpt_mesh.serving.server import ServerSettings
from tests.support.families import FAMILIES
from tests.support.runs import Run, Workspace, rows
from tests.support.servers import serving_here

NEW = 6
PROMPT = "import email\nfrom"


def random_folder(family: str, folder: Path) -> dict[str, np.ndarray]:
    """A model of the family's first shape in Hugging Face's files, without a tokenizer; returns its tensors."""
    values = {"model_type": family, **next(iter(FAMILIES[family].values()))}
    kind, rng = ARCHITECTURES[family], np.random.default_rng(0)
    model = parse_model(kind.read(values, family), family)
    sizes = weight_sizes(model)
    state = {
        name: (rng.standard_normal(shape) * 0.15 + (len(shape) == 1)).astype(np.float32)
        for exchange in kind.exchanges(model)
        for name, shape in zip(exchange.theirs, exchange.shapes(sizes), strict=True)
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "mixtral" else pytest.mark.exhaustive) for name in FAMILIES]
)
def test_a_family_goes_through_every_command(workspace: Workspace, tmp_path: Path, run: Run, family: str) -> None:
    state = random_folder(family, tmp_path / "theirs")
    config, directory = tmp_path / "came.json", tmp_path / "run"
    flags = ["--name", "came", "--config_dir", tmp_path, "--model_path", directory, "--tokenizer", workspace.tokenizer]
    assert huggingface.main([str(flag) for flag in ("import", tmp_path / "theirs", *flags)]) == 0

    model = api.load(str(config))
    [wanted] = model.generator().generate(
        [GenerationRequest(PROMPT, GenerationSettings(temperature=0, max_new_tokens=NEW, min_new_tokens=NEW))]
    )
    text = model.encoder.decode([*wanted.tokens])
    greedy = ["--temperature", 0, "--max_new_tokens", NEW, "--min_new_tokens", NEW, "--num_samples", 1]
    status, out, err = run("--model", config, "--predict", "--text", PROMPT, *greedy)
    assert status == 0 and text.strip() in out, err

    (tmp_path / "some.txt").write_text(PROMPT)
    status, out, err = run("--model", config, "--score", tmp_path / "some.txt", "--json")
    assert status == 0, err
    tokens = np.array(model.encoder.encode(PROMPT))
    logits = model.logits(tokens[None])[0].astype(np.float64)
    likelihoods = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = likelihoods[np.arange(len(tokens) - 1), tokens[1:]].sum()
    assert json.loads(out)["sum"] == pytest.approx(total, abs=1e-3)

    with serving_here(config, ServerSettings(max_batch=2)) as url:
        job = {"prompt": PROMPT, "temperature": 0, "max_tokens": NEW, "min_tokens": NEW}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(job).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["choices"][0]["text"] == text

    status, _, err = run("--model", config, "--export", tmp_path / "saved")
    assert status == 0, err
    signatures = tf.saved_model.load(str(tmp_path / "saved")).signatures
    found = signatures["logits"](tokens=tf.constant(tokens[None], tf.int32))["logits"].numpy()[0]
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4)

    assert huggingface.main(["export", str(config), str(tmp_path / "again"), "--architecture", family]) == 0
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(again[name].tobytes() == state[name].tobytes() for name in again)
    assert {*state} - {*again} <= {ARCHITECTURES[family].head}

    trained_from(tmp_path / "theirs", json.loads(config.read_text()), workspace, tmp_path, run)


def trained_from(folder: Path, values: dict[str, object], workspace: Workspace, tmp_path: Path, run: Run) -> None:
    """Fine-tuning from the folder on a mesh, recomputed, in microbatches, in bfloat16, with an evaluation."""
    keys = {
        "datasets": [["tiny", 2, "documents_random", 1.0]], "train_batch_size": 4, "train_steps": 4, "iterations": 2,
        "eval_steps": 1, "warmup_steps": 1, "lr": 1e-3, "recompute_grad": True, "tokens_per_mb_per_replica": 96,
        "precision": "bfloat16", "mesh_shape": "a:2,b:2", "layout": "batch:a,heads:b,intermediate_expanded:b,vocab:b",
        "model_path": str(tmp_path / "tuned"),
    }  # fmt: skip
    config = workspace.root / f"tuned_{tmp_path.name}.json"
    config.write_text(json.dumps({**values, **keys}))
    devices = [f"device:CPU:{i}" for i in range(4)]
    status, _, err = run("--model", config, "--init_from", folder, "--gpu_ids", *devices)
    assert status == 0, err
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "tuned" / "metrics.jsonl"))
    [score] = rows(tmp_path / "tuned" / "eval.jsonl")
    assert math.isfinite(score["nll"])
