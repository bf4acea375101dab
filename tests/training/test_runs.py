"""Which configs a run may go on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.config import Config, load_config
from gpt_mesh.errors import InputError
from gpt_mesh.training import report
from gpt_mesh.training.runs import check_resumable
from tests.support.runs import Workspace, logged

MIXTURES = {"moe_layers": [1], "moe_params": {"moe_num_experts": 4}}


@pytest.fixture
def begun(workspace: Workspace, tmp_path: Path) -> Config:
    """The config of a run that has begun."""
    config = resumed(workspace, tmp_path)
    report.write_config(config)
    return config


def resumed(workspace: Workspace, tmp_path: Path, **keys: Any) -> Config:
    keys = {**MIXTURES, "model_path": str(tmp_path / "run"), **keys}
    return load_config(str(workspace.config("resumed", **keys)))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"n_head": 1}, "n_head = 1, but the run in .* has 2: .*; set n_head back, or start another run, in another"),
        ({"activation_function": "relu"}, "activation_function = relu, but the run in .* has gelu"),
        ({"attention_types": [[["global"], 2]]}, r"attention_types = .*another run with --init_from, in another model"),
        ({"local_attention_radius": 3}, "local_attention_radius = 3, but the run in .* has 8"),
        ({"rotary_emb": True}, "pos_emb = rotary, but the run in .* has learned"),
        ({"scalenorm": True}, "scalenorm = true, but the run in .* has false"),
        ({"moe_activation": "gelu"}, "moe_activation = gelu"),
        ({"moe_params": {"moe_num_experts": 2}}, "moe_num_experts = 2, but the run in .* has 4"),
        ({"mlm_training": True, "mlm_mask_id": 3}, "objective = masked, but the run in .* has next_token"),
        ({"entmax_loss": True}, "entmax_loss = true"),
        ({"n_vocab": 400}, "n_vocab = 400"),
    ],
)
def test_another_model_is_refused(
    begun: Config, workspace: Workspace, tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_resumable(resumed(workspace, tmp_path, **keys), "model.ckpt-5")
    assert "\n" not in str(caught.value)


def test_what_may_change_is_said(begun: Config, workspace: Workspace, tmp_path: Path) -> None:
    params = {"moe_num_experts": 4, "moe_dropout_rate": 0.5}
    keys = {"lr": 0.5, "precision": "bfloat16", "train_batch_size": 16, "moe_params": params}
    with logged() as messages:
        check_resumable(resumed(workspace, tmp_path, **keys), "model.ckpt-5")
    was = begun.training.train_batch_size
    assert messages == [
        f"changed since model.ckpt-5: moe_dropout_rate 0.0 -> 0.5, lr {begun.optimizer.lr} -> 0.5, train_batch_size "
        f"{was} -> 16, eval_batch_size {was} -> 16, precision float32 -> bfloat16",
        messages[1],
    ]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"train_steps": 2000},
            "the learning rate at step 500 changes from 0.55 to 0.868; its decay ends at step 2000 (was 1000)",
        ),
        (
            {"lr_decay_end": 500},
            "the learning rate at step 500 changes from 0.55 to 0.1; its decay ends at step 500 (was 1000)",
        ),
        ({"lr": 0.5}, "the learning rate at step 500 changes from 0.55 to 0.275; its decay ends at step 1000"),
        ({"train_steps": 2000, "lr_decay_end": 1000}, "the learning rate at step 500 stays 0.55"),
    ],
)
def test_another_schedule_says_what_the_learning_rate_becomes(
    workspace: Workspace, tmp_path: Path, keys: dict[str, Any], line: str
) -> None:
    usual = {"lr": 1.0, "lr_decay": "cosine", "train_steps": 1000, "warmup_steps": 0}
    report.write_config(resumed(workspace, tmp_path, **usual))
    with logged() as messages:
        check_resumable(resumed(workspace, tmp_path, **{**usual, **keys}), "model.ckpt-500")
    assert messages[0].startswith("changed since model.ckpt-500: ") and messages[1:] == [line]


def test_the_same_config_says_nothing(begun: Config) -> None:
    with logged() as messages:
        check_resumable(begun, "model.ckpt-5")
    assert messages == []


def test_an_equal_size_of_experts_may_be_written_out(begun: Config, workspace: Workspace, tmp_path: Path) -> None:
    written = {"moe_num_experts": 4, "moe_hidden_size": 4 * begun.model.n_embd}
    check_resumable(resumed(workspace, tmp_path, moe_params=written), "model.ckpt-5")
    with pytest.raises(InputError, match="moe_hidden_size = 5"):
        check_resumable(resumed(workspace, tmp_path, moe_params={**written, "moe_hidden_size": 5}), "model.ckpt-5")


def test_keys_that_an_old_run_did_not_know_have_their_defaults(
    begun: Config, workspace: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    for name in ("entmax_loss", "rotary_emb", "pos_emb", "rope_scaling", "moe_activation", "background_checkpoints"):
        del values[name]
    del values["moe_params"]["moe_second_policy_eval"]
    path.write_text(json.dumps(values))
    with logged() as messages:
        check_resumable(begun, "model.ckpt-5")
    assert messages == []
    with pytest.raises(InputError, match="pos_emb = rotary"):
        check_resumable(resumed(workspace, tmp_path, rotary_emb=True), "model.ckpt-5")


@pytest.mark.parametrize("text", ["", '{"n_head": "many"}', '{"gone": 1}'])
def test_a_config_that_cannot_be_read_is_not_compared(
    begun: Config, workspace: Workspace, tmp_path: Path, text: str
) -> None:
    (tmp_path / "run" / "config.json").write_text(text)
    with logged() as messages:
        check_resumable(resumed(workspace, tmp_path, n_head=1), "model.ckpt-5")
    assert len(messages) == 1 and "its config cannot be read" in messages[0]


def test_a_run_without_a_config_is_not_compared(workspace: Workspace, tmp_path: Path) -> None:
    with logged() as messages:
        check_resumable(resumed(workspace, tmp_path), "model.ckpt-5")
    assert messages == []
