"""A model trained on what a program has in memory, from `train` to text."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import gpt_mesh
from gpt_mesh import InputError, ModelConfig
from gpt_mesh.config import load_config
from gpt_mesh.inputs import TrainingData
from tests.support.runs import REPOSITORY, Workspace, rows

SMALL: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16, "train_batch_size": 4}
TEXT = "the cat sat on the mat.\n" * 40


def test_from_a_list_to_text(tmp_path: Path) -> None:
    """From texts to a sampled model, and through a folder that moves."""
    events: list[gpt_mesh.Event] = []
    result = gpt_mesh.train(
        model=SMALL, data=[TEXT, TEXT[:50]], eval_data=TEXT[:100], train_steps=6, log_interval=2, watch=events.append,
        steps_per_checkpoint=3,
    )  # fmt: skip
    assert (result.step, result.interrupted) == (6, False)
    assert [(event.kind, event.step) for event in events] == [
        ("metrics", 2), ("evaluation", 3), ("metrics", 4), ("metrics", 6), ("evaluation", 6),
    ]  # fmt: skip
    assert events[-1].values["nll"] == result.evaluation["nll"]  # type: ignore[index]
    assert result.model.config.model.n_vocab == len(set(TEXT)) + 2
    text = result.model.generate("the ", max_new_tokens=10, temperature=0)
    assert set(text[0]) <= {*TEXT, *"<|endoftext|>", *"<|unknown|>"}
    saved = tmp_path / "saved"
    result.model.save(saved)
    result.model.save(saved)  # a second time replaces it
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(saved, tmp_path / "elsewhere" / "moved")
    loaded = gpt_mesh.load(moved)
    assert loaded.step == 6 and loaded.generate("the ", max_new_tokens=10, temperature=0) == text
    longer = gpt_mesh.train(moved, data=[TEXT], train_steps=8)
    assert longer.step == 8 and longer.model.config.training.model_path == str(tmp_path / "elsewhere" / "moved")


@pytest.mark.parametrize(
    ("data", "mode", "vocabulary"),
    [
        (np.arange(100) % 7, "documents_random", 7),
        ([[1, 2, 3] * 10, [4] * 30], "documents_random", 5),
        (np.ones((9, 17), np.int64), "chunks", 2),
        (({"input_ids": [1, 5]} for _ in range(10**9)), "documents_random", 6),
    ],
)
def test_token_ids(tmp_path: Path, data: Any, mode: str, vocabulary: int) -> None:
    result = gpt_mesh.train(SMALL, data=data, train_steps=1, model_path=str(tmp_path / "run"))
    config = result.config
    assert config.model.n_vocab == vocabulary and config.data.datasets[0].sampling_mode == mode
    assert TrainingData(config).batch(0, 3).shape == (3, 17)


def test_pairs_are_learned_in_part(tmp_path: Path) -> None:
    pairs = [(f"{a}+{b}=", f"{a + b}") for a in range(5) for b in range(5)]
    result = gpt_mesh.train(SMALL, data=pairs, eval_data=pairs[:9], train_steps=2, model_path=tmp_path / "run")
    assert result.config.training.objective == "sft"
    assert result.evaluation is not None
    answers = "".join(answer for _, answer in pairs[:9])
    assert result.evaluation["tokens"] == len(answers) + 8  # each with an end of text, but the last one's
    assert result.model.score("1+1=2").tokens


def test_the_same_call_continues_and_a_changed_one_says_so(tmp_path: Path) -> None:
    call: dict[str, Any] = {"model": SMALL, "data": [TEXT], "model_path": str(tmp_path / "run")}
    assert gpt_mesh.train(**call, train_steps=2).step == 2
    assert gpt_mesh.train(**call, train_steps=4).step == 4
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")][-1] == 4
    with pytest.raises(InputError, match=r"n_embd = 32, but the run in .* has 16"):
        gpt_mesh.train(**{**call, "model": {**SMALL, "n_embd": 32}}, train_steps=5)


def test_a_watcher_ends_the_run(tmp_path: Path) -> None:
    result = gpt_mesh.train(
        SMALL, data=[TEXT], train_steps=50, log_interval=1, watch=lambda event: event.step == 3,
    )  # fmt: skip
    assert (result.step, result.interrupted) == (3, True)
    assert result.model.step == 3


def test_a_config_with_keys_above_it(workspace: Workspace) -> None:
    path = str(workspace.config("above", n_layer=1, attention_types=[[["global"], 1]]))
    result = gpt_mesh.train(path, train_steps=2, iterations=1)
    assert result.step == 2 and len(rows(workspace.root / "above" / "metrics.jsonl")) == 2
    own = gpt_mesh.train(path, data=["import os\n" * 40], train_steps=3, model_path=str(workspace.root / "own_data"))
    assert own.model.encoder.n_vocab == 320  # the config's tokenizer


def test_a_config_made_in_python() -> None:
    model = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, n_vocab=50)
    assert model.attention_types == ("global",) and model.n_positions == 16
    result = gpt_mesh.train(model, data=np.arange(50), train_steps=1)
    assert result.config.model == model
    with pytest.raises(InputError, match=r"^ModelConfig: n_head: required but missing; add n_head, n_embd, n_ctx"):
        ModelConfig(n_layer=4)
    with pytest.raises(InputError, match=r'^ModelConfig: n_layer = "4": must be an integer$'):
        ModelConfig(n_layer="4", n_head=2, n_embd=16, n_ctx=16, n_vocab=50)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^ModelConfig: n_layers = 4: unknown key; use n_layer$"):
        ModelConfig(n_layers=4)  # type: ignore[call-arg]


def test_tokenizers_of_other_libraries(workspace: Workspace) -> None:
    class Fast:  # as of transformers
        backend_tokenizer = Tokenizer.from_file(str(workspace.tokenizer))

    for tokenizer in (str(workspace.tokenizer), workspace.tokenizer, Fast.backend_tokenizer, Fast()):
        found = gpt_mesh.train(SMALL, data=["import os\n" * 99], tokenizer=tokenizer, train_steps=1)
        assert found.config.model.n_vocab == 320


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, r"train\(\): there is nothing to train on"),
        ({"model": SMALL, "eval_data": ["a"]}, "eval_data and tokenizer go with data"),
        ({"model": 3, "data": ["a"]}, r"train\(\): model = 3: must be a config's name"),
        ({"model": "nothing_such"}, "no such model config"),
        ({"model": {**SMALL, "n_embd": 15}, "data": [TEXT]}, r"n_embd = 15: not divisible by n_head = 2"),
        ({"model": {**SMALL, "n_layers": 2}, "data": [TEXT]}, r"^model: n_layers = 2: unknown key; use n_layer$"),
        ({"model": SMALL, "data": [TEXT], "lr": "x"}, r'^train\(\): lr = "x": must be a number$'),
        ({"model": SMALL, "data": ["short"]}, r"data: 5 tokens do not fill a window of n_ctx \+ 1 = 17"),
        ({"model": {**SMALL, "n_vocab": 4}, "data": [[1, 9] * 20]}, r"holds token id 9, and n_vocab"),
        ({"model": SMALL, "data": [TEXT], "tokenizer": 5}, r'tokenizer = "int": must be a path'),
        ({"model": SMALL, "data": [TEXT], "tokenizer": "no/such"}, "no/such"),
        ({"model": "laptop", "data": [TEXT], "n_vocab": 3, "tokenizer": "TOKENIZER"}, "n_vocab = 3"),
    ],
)
def test_what_cannot_work(arguments: dict[str, Any], words: str, workspace: Workspace) -> None:
    if arguments.get("tokenizer") == "TOKENIZER":
        arguments = {**arguments, "tokenizer": str(workspace.tokenizer)}
    with pytest.raises(InputError, match=words) as caught:
        gpt_mesh.train(**arguments)
    assert "\n" not in str(caught.value)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "play.py"
    path.write_text(
        "import gpt_mesh, sys\n"
        f"small = {SMALL!r}\n"
        "result = gpt_mesh.train(small, data=['abc ' * 99], train_steps=10**6, log_interval=1,\n"
        "                        watch=lambda event: print('step', event.step, flush=True))\n"
        "print('kept', result.interrupted, result.step == result.model.step, result.model.config.training.model_path)\n"
    )
    yield path


def test_ctrl_c_keeps_what_was_learned(script: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line == "step 5\n":
                run.send_signal(signal.SIGINT)
                break
        out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    last = out.splitlines()[-1].split()
    assert last[:3] == ["kept", "True", "True"]
    assert not os.path.exists(last[3])  # a temporary run goes with its program


def test_load_config_of_a_run_made_in_memory(tmp_path: Path) -> None:
    gpt_mesh.train(SMALL, data=[TEXT], train_steps=1, model_path=str(tmp_path / "run"))
    config = load_config(str(tmp_path / "run" / "config.json"))
    assert config.model.n_embd == 16 and Path(config.data.datasets[0].dataset.files()[0]).name == "data.bin"
