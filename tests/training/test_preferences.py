"""From preferences to a model that follows them: in memory, and by files; stopped and resumed; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpt_mesh
from gpt_mesh import InputError
from gpt_mesh.config import load_config
from gpt_mesh.data.create_tfrecords import main as create_tfrecords
from gpt_mesh.data.pairs import fitted
from gpt_mesh.engine import checkpoints
from gpt_mesh.inputs import PairEvaluationData, TrainingData
from gpt_mesh.training.interval import Interval
from tests.support.runs import Workspace, rows

SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_ctx": 12, "warmup_steps": 5, "lr_decay": "none"}
Row = dict[str, Any]


def made_up(count: int, seed: int) -> list[Row]:
    """Four different digits are to be put into ascending order, and not into descending order."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        digits = [str(digit) for digit in rng.permutation(10)[:4]]
        ascending = "".join(sorted(digits))
        found.append({"prompt": "".join(digits) + ">", "chosen": ascending, "rejected": ascending[::-1]})
    return found


def single(pairs: list[Row]) -> list[Row]:
    """One completion of each pair, in turn the chosen and the rejected one."""
    return [
        {"prompt": pair["prompt"], "completion": pair["rejected" if n % 2 else "chosen"], "label": n % 2 == 0}
        for n, pair in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen both orders equally often."""
    folder = tmp_path_factory.mktemp("preferences") / "base"
    texts = [row["prompt"] + row["rejected" if n % 2 else "chosen"] + ";" for n, row in enumerate(made_up(1500, 0))]
    gpt_mesh.train(SMALL, data=texts, model_path=folder, train_steps=150, lr=2e-3)
    return folder


def learn(base: Path, objective: str, folder: Path, **more: Any) -> Any:
    config = load_config(str(base / "config.json"))
    data = made_up(400, 1)
    keys: Row = {
        "model": {**SMALL, "n_vocab": config.model.n_vocab}, "data": single(data) if objective == "kto" else data,
        "eval_data": made_up(100, 2), "tokenizer": next((base / "tokenizer").iterdir()), "objective": objective,
        "init_from": base, "model_path": folder, "train_steps": 60, "train_batch_size": 16, "lr": 5e-4,
        "log_interval": 20,
    }  # fmt: skip
    return gpt_mesh.train(**{**keys, **more})


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "kto", "reward"])
def test_preferences_are_learned(base: Path, tmp_path: Path, objective: str) -> None:
    result = learn(base, objective, tmp_path)
    logged = rows(tmp_path / "metrics.jsonl")
    assert {"rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy"} <= logged[-1].keys()
    assert ("kl" in logged[-1]) == (objective == "kto")
    assert not any(name.endswith("/examples") for name in logged[-1])
    assert logged[-1]["rewards/margin"] == pytest.approx(
        logged[-1]["rewards/chosen"] - logged[-1]["rewards/rejected"], rel=1e-4
    )
    [evaluated] = rows(tmp_path / "eval.jsonl")
    assert evaluated["task"] == "validation" and evaluated["accuracy"] > 0.95 and evaluated["margin"] > 0
    again = gpt_mesh.evaluate(str(tmp_path))  # whose reference comes from the checkpoint
    assert [again[name] for name in ("loss", "accuracy", "margin")] == pytest.approx(
        [evaluated[name] for name in ("loss", "accuracy", "margin")], rel=1e-5
    )
    model = result.model
    if objective == "reward":
        better, worse = model.reward(["4927>2479", "4927>9742"])
        assert better > worse + 1
        for generate in (lambda: model.generate("4927>"), lambda: model.score("4927>")):
            with pytest.raises(InputError, match="reward models give each text a number; they do not generate"):
                generate()
        for ask in (lambda: model.logits([1, 2]), lambda: model.export(str(tmp_path / "exported"))):
            with pytest.raises(InputError, match="and no logits; use its rewards"):
                ask()
    else:
        ascending, descending = model.score(["4927>2479", "4927>9742"])
        assert ascending.sum > descending.sum
        with pytest.raises(InputError, match="gives no rewards"):
            model.reward("4927>")


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(base: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    learn(base, "dpo", whole, train_steps=6, lr_decay_end=6, eval_steps=0)
    learn(base, "dpo", parts, train_steps=3, lr_decay_end=6, eval_steps=0)
    learn(base, "dpo", parts, train_steps=6, lr_decay_end=6, eval_steps=0)
    found, wanted = (dict(checkpoints.values(f"{folder}/model.ckpt-6")) for folder in (parts, whole))
    assert any(name.startswith("reference/gpt2/") for name in wanted)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(value, wanted[name]) for name, value in found.items())
    begun = dict(checkpoints.values(str(base / "model.ckpt-150")))
    kept = {name: value for name, value in begun.items() if f"reference/{name}" in wanted}
    assert all(np.array_equal(wanted[f"reference/{name}"], value) for name, value in kept.items())


def test_records_become_the_pairs_that_were_given(workspace: Workspace, tmp_path: Path) -> None:
    """create_tfrecords.py's records, read as training and evaluation read them."""
    pairs = made_up(40, 3)
    for kind, written in (("preference", pairs), ("kto", single(pairs))):
        source, name = tmp_path / f"{kind}_source", f"preferences_{kind}"
        source.mkdir()
        (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        create_tfrecords([
            "--input_dir", str(source), "--records", kind, "--name", kind, "--output_dir", str(tmp_path / kind),
            "--encoder_path", str(workspace.tokenizer), "--minimum_size", "1", "--eval_fraction", "0.25", "--processes",
            "1", "--write_dataset_config", str(workspace.root / "dataset_configs" / f"{name}.json"),
        ])  # fmt: skip
    config = load_config(str(workspace.config("by_files", objective="dpo", datasets=["preferences_preference"])))
    encoder = gpt_mesh.data.encoders.load_encoder(str(workspace.tokenizer))
    data, held_out = TrainingData(config, progress=False), PairEvaluationData(config, progress=False)
    count = len(pairs) - held_out.n_examples
    found = [*data.batch(0, count), *next(held_out.batches(held_out.n_examples))]
    texts = [[encoder.decode([t for t in text.tolist() if t > 0]) for text in pair] for pair in found]
    assert sorted(texts) == sorted([row["chosen"], row["rejected"]] for row in pairs)
    both = load_config(
        str(workspace.config("labels", objective="kto", datasets=["preferences_preference", "preferences_kto"]))
    )
    batch = TrainingData(both, progress=False).batch(0, 64)
    assert ((batch >= 0).any(-1).sum(-1) == 1).all()
    for objective, dataset, problem in (
        ("dpo", "tiny", "holds records of kind text|holds no preferences"),
        ("reward", "preferences_kto", "does not learn from; set objective to kto"),
        ("sft", "preferences_preference", "set objective to dpo or kto or reward"),
    ):
        with pytest.raises(InputError, match=problem):
            TrainingData(load_config(str(workspace.config("bad", objective=objective, datasets=[dataset]))))


def test_long_prompts_lose_their_beginning() -> None:
    prompt = [~n for n in range(1, 6)]
    chosen, rejected = (np.array([*prompt, *answer], np.int32) for answer in ([7, 8, 9], [7]))
    assert fitted(chosen, rejected, 8).tolist() == [[*prompt, 7, 8, 9], [*prompt, 7, -1, -1]]
    assert fitted(chosen, rejected, 6).tolist() == [[*prompt[2:], 7, 8, 9], [*prompt[2:], 7, -1, -1]]
    assert fitted(chosen, rejected, 3).tolist() == [[prompt[-1], 7, 8], [prompt[-1], 7, -1]]


def test_means_over_some_examples_are_ratios() -> None:
    interval = Interval()
    for total, count in ((3.0, 0.5), (0.0, 0.0)):
        values = {"loss": 1.0, "rewards/chosen": total, "rewards/chosen/examples": count, "rewards/rejected": 1.0}
        interval.add(1, values, values)
    assert Interval.of(json.loads(json.dumps(interval.state()))).values() == interval.values() | {}
    assert interval.values()["rewards/chosen"] == 6.0 and interval.values()["rewards/margin"] == 5.0


GOOD = {"prompt": "1>", "chosen": "1", "rejected": "2"}


@pytest.mark.parametrize(
    ("data", "keys", "message"),
    [
        ([{**GOOD, "rejected": "1"}], {}, r"data\[0\]: chosen and rejected are equal"),
        ([GOOD], {}, "name its weights with --init_from"),
        (["some text"], {}, r"data\[0\]: has .*, and is no preference"),
        ([{"prompt": "1>", "completion": "2"}], {}, r"data\[0\]: has prompt, completion; give rows"),
        ([GOOD], {"objective": "sft"}, "is a preference: learn from it with objective = dpo, kto or reward"),
        ([{"prompt": "1>", "completion": "2", "label": True}], {}, "holds completions with labels: train on them"),
        ([{"prompt": "1>", "completion": "2", "label": True}], {"objective": "kto"}, "holds 1 completions; kto needs"),
        ([GOOD], {"objective": "kto", "train_batch_size": 1}, "train_batch_size = 1: kto compares"),
    ],
)
def test_what_cannot_be_learned_from(data: Any, keys: Row, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        gpt_mesh.train(
            {**SMALL, "n_vocab": 64}, data=data, model_path=tmp_path, train_steps=1, **{"objective": "dpo", **keys}
        )
