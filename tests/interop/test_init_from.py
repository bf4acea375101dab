"""A new run that begins from given weights: at step 0, with the same losses as the weights had, and only as asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.config import Config, load_config
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.interop.import_model import import_model
from gpt_mesh.interop.initial_weights import InitFrom, InitialWeights
from gpt_mesh.training import report
from tests.support.corpora import make_tokenizer
from tests.support.hugging_face import random_state, write_folder
from tests.support.models import is_weight, make_engine, tiny_config
from tests.support.runs import Run, Workspace, logged, random_checkpoint, rows, weights

NEO: dict[str, Any] = {"n_embd": 16, "n_head": 4, "embed_dropout": 0}  # what CONFIG of the folder is


def new_config(workspace: Workspace, name: str, **keys: Any) -> Config:
    return load_config(str(workspace.config(name, **NEO, **keys)))


@pytest.fixture(scope="module")
def theirs(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("init") / "theirs", workspace.tokenizer)


def filled(config: Config, init: InitFrom, *, training: bool = True) -> dict[str, np.ndarray]:
    """Variables of a new engine, filled."""
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=training)
    InitialWeights(init, config).fill(engine.store.masters)
    return {name: variable.numpy() for name, variable in engine.store.masters.items()}


@pytest.mark.slow
def test_a_run_begins_there_and_then_goes_on_by_itself(workspace: Workspace, theirs: Path, run: Run) -> None:
    """The first loss is that of the weights; with them gone the run resumes, and says that it ignores them."""
    path = workspace.config("tuned", **NEO, train_steps=2, iterations=1, warmup_steps=0, lr=1e-9)
    status, _, err = run("--model", path, "--init_from", theirs, "--steps_per_checkpoint", 1)
    assert status == 0 and f"training steps 0 to 2, new run with the weights of {theirs}" in err
    done = import_model(str(theirs), "came", config_dir=str(workspace.root), model_path=str(workspace.root / "came"))
    first, *_ = rows(workspace.root / "tuned" / "metrics.jsonl")
    assert first["step"] == 1 and first["nll"] > 10  # random weights this large are far from log(320) = 5.8
    began, after = weights(Path(done.checkpoint)), weights(workspace.root / "tuned" / "model.ckpt-2")
    np.testing.assert_allclose(after["gpt2/h1/attn/q"], began["gpt2/h1/attn/q"], atol=1e-6)
    state = checkpoints.restore_state(str(workspace.root / "tuned" / "model.ckpt-2"))
    assert state["init_from"] == str(theirs)

    workspace.config("tuned", **NEO, train_steps=3, iterations=1, warmup_steps=0, lr=1e-9)
    status, _, err = run("--model", path, "--init_from", "/gone", "--steps_per_checkpoint", 1)
    assert status == 0 and "--init_from /gone is ignored: this run continues from" in err
    assert [row["step"] for row in rows(workspace.root / "tuned" / "metrics.jsonl")] == [1, 2, 3]


def test_the_optimizer_begins_anew_unless_it_is_kept(tmp_path: Path) -> None:
    config = tiny_config()
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=True)
    for name, variable in engine.store.masters.items():
        variable.assign(np.full(variable.shape, 3 if name == "global_step" else 0.25))
    path = engine.save(str(tmp_path), 3, {})
    fresh, kept = (filled(config, InitFrom(path, keep_optimizer=keep)) for keep in (False, True))
    assert fresh["global_step"] == kept["global_step"] == 0
    for name in {*fresh} - {"global_step"}:
        assert (fresh[name] == (0.25 if is_weight(name) else 0)).all() and (kept[name] == 0.25).all(), name


@pytest.mark.slow
def test_a_mesh_of_several_devices_begins_with_the_same_losses(workspace: Workspace, theirs: Path, run: Run) -> None:
    keys = {**NEO, "train_steps": 2, "iterations": 1, "lr": 1e-3}
    first = {}
    for name, more, flags in (
        ("init_one", {}, ()),
        ("init_four", {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,vocab:y"},
         ("--gpu_ids", *(f"device:CPU:{i}" for i in range(4)))),
    ):  # fmt: skip
        status, _, err = run("--model", workspace.config(name, **keys, **more), "--init_from", theirs, *flags)
        assert status == 0, err
        first[name] = [row["nll"] for row in rows(workspace.root / name / "metrics.jsonl")]
    np.testing.assert_allclose(first["init_four"], first["init_one"], rtol=1e-5)


def test_more_tokens_begin_at_the_mean_and_longer_contexts_repeat(workspace: Workspace, theirs: Path) -> None:
    config = new_config(workspace, "larger", n_vocab=352, n_ctx=48)
    with logged() as messages:
        found = filled(config, InitFrom(str(theirs), resize_vocab=True, extend_context=True), training=False)
    state = random_state()
    old = state["transformer.wte.weight"]
    np.testing.assert_array_equal(found["gpt2/wte"][:320], old)
    np.testing.assert_allclose(found["gpt2/wte"][320:], np.tile(old.mean(0), (32, 1)), rtol=1e-5, atol=1e-6)
    positions = state["transformer.wpe.weight"]
    np.testing.assert_array_equal(found["gpt2/wpe"], np.concatenate([positions, positions[:16]]))
    assert any("vocabulary of 352 for 320: 320 tokens keep" in line and "mean" in line for line in messages)
    assert any("context of 48 for 32; positions from 32 on" in line for line in messages)


def test_another_tokenizer_keeps_the_tokens_that_both_have(workspace: Workspace, theirs: Path, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "other", n_vocab=300, texts=["zebra zebra quagga quagga zebra"])
    workspace.dataset("other", None, path="none", n_vocab=300, tokenizer_path=str(other))
    keys = {"datasets": ["other"], "n_vocab": 320}
    with pytest.raises(InputError, match=r"is another tokenizer than .*--resize_vocab"):
        InitialWeights(InitFrom(str(theirs)), new_config(workspace, "other_a", **keys))
    found = filled(new_config(workspace, "other_b", **keys), InitFrom(str(theirs), resize_vocab=True), training=False)
    old = random_state()["transformer.wte.weight"]
    before, now = (load_encoder(str(path)).tokenizer.get_vocab() for path in (workspace.tokenizer, other))
    shared = {*before} & {*now}
    assert 256 <= len(shared) < len(now)
    for token, number in now.items():
        wanted = old[before[token]] if token in before else old.mean(0)
        np.testing.assert_allclose(found["gpt2/wte"][number], wanted, rtol=1e-4, atol=1e-6, err_msg=token)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"n_vocab": 352}, "n_vocab = 352, but --init_from .* has 320; .*--resize_vocab"),
        ({"n_ctx": 64}, "n_ctx = 64, but --init_from .* has 32; .*--extend_context"),
        ({"n_head": 2}, "n_head = 2, but --init_from .* has 4; make them equal"),
        ({"activation_function": "relu"}, "activation_function = relu"),
        ({"no_weight_tie": True}, "no_weight_tie = True, but .* has False"),
        ({"num_mem_kv": 2}, "num_mem_kv = 2, but .* has 0"),
        ({"n_embd": 32}, "n_embd = 32, but .* has 16"),
        ({"n_layer": 1, "attention_types": [[["global"], 1]]}, "n_layer = 1, but .* has 2"),
        ({"scalenorm": True}, "scalenorm = True, but .* has False"),
        ({"mlm_training": True, "mlm_mask_id": 3}, "mlm_training = True, but .* has False"),
    ],
)
def test_what_differs_unasked_is_refused(workspace: Workspace, theirs: Path, keys: dict[str, Any], words: str) -> None:
    config = load_config(str(workspace.config("differs", **{**NEO, **keys})))
    with pytest.raises(InputError, match=words):
        InitialWeights(InitFrom(str(theirs)), config)


def test_what_is_no_source_is_refused(workspace: Workspace, theirs: Path, tmp_path: Path) -> None:
    config = new_config(workspace, "sources")
    with pytest.raises(InputError, match="no weights there"):
        InitialWeights(InitFrom(str(tmp_path / "nothing")), config)
    with pytest.raises(InputError, match="has no optimizer state"):
        InitialWeights(InitFrom(str(theirs), keep_optimizer=True), config)
    bad = random_state()
    bad["transformer.h.0.ln_1.weight"][0] = np.inf
    folder = write_folder(tmp_path / "bad", None, state=bad)
    with pytest.raises(InputError, match="not finite"):
        filled(config, InitFrom(str(folder)), training=False)


def test_a_run_that_was_imported_knows_its_model(workspace: Workspace, theirs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = import_model(str(theirs), "knows", config_dir=str(tmp_path), model_path=str(run))
    other = load_config(str(workspace.config("other_heads", **{**NEO, "n_head": 2})))
    for source in (str(run), done.checkpoint):
        with pytest.raises(InputError, match=r"n_head = 2, but .* has 4; make them equal"):
            InitialWeights(InitFrom(source), other)
    (run / "config.json").write_text('{"n_head": "many"}')
    with logged() as messages:
        InitialWeights(InitFrom(str(run)), other)
    assert any(f"{run}" in line and "its config is unknown" in line for line in messages)


def test_no_weight_is_left_out(workspace: Workspace, tmp_path: Path) -> None:
    """One that the new model has no place for, with a config beside it and without."""
    tied, untied = new_config(workspace, "tied"), new_config(workspace, "untied", no_weight_tie=True)
    path = random_checkpoint(tmp_path / "run", untied)
    with pytest.raises(InputError, match=r"has gpt2/linear_out/kernel, which .* has no place for"):
        InitialWeights(InitFrom(path), tied)
    report.write_config(load_config(str(workspace.config("untied", **NEO, no_weight_tie=True,
                                                         model_path=str(tmp_path / "run")))))  # fmt: skip
    with pytest.raises(InputError, match=r"no_weight_tie = False, but .* has True"):
        InitialWeights(InitFrom(path), tied)


def test_a_tokenizer_may_have_more_tokens_than_its_model(workspace: Workspace, tmp_path: Path) -> None:
    """In a Hugging Face folder it is refused, as it is another model's; beside a run such ids are those of no token."""
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, vocab_size=256)
    other = make_tokenizer(tmp_path / "other", n_vocab=300, texts=["import import email email import"])
    workspace.dataset("fewer", None, path="none", n_vocab=256)
    workspace.dataset("others", None, path="none", n_vocab=300, tokenizer_path=str(other))
    config = new_config(workspace, "fewer_rows", n_vocab=320, datasets=["others"])
    with pytest.raises(InputError, match=r"has 320 tokens, but .* says vocab_size = 256"):
        InitialWeights(InitFrom(str(folder), resize_vocab=True), config)

    old = new_config(workspace, "few_rows", n_vocab=256, datasets=["fewer"], model_path=str(tmp_path / "run"))
    path = random_checkpoint(tmp_path / "run", old)
    report.write_config(old)
    wte = tf.Variable(tf.zeros([320, 16]))
    InitialWeights(InitFrom(path, resize_vocab=True), config).fill({"gpt2/wte": wte})
    rows_before = weights(Path(path))["gpt2/wte"]
    before, now = (load_encoder(str(path)).tokenizer.get_vocab() for path in (workspace.tokenizer, other))
    assert any(before.get(token, 0) >= 256 for token in now)
    for token, number in now.items():
        kept = before.get(token, 256) < 256
        wanted = rows_before[before[token]] if kept else rows_before.mean(0)
        np.testing.assert_allclose(wte.numpy()[number], wanted, rtol=1e-4, atol=1e-6, err_msg=token)


@pytest.mark.parametrize("n_vocab", [352, 320])
def test_means_over_rows_begin_anew_where_rows_change(workspace: Workspace, tmp_path: Path, n_vocab: int) -> None:
    """Adafactor's state of an embedding with more tokens (352), or with others (320)."""
    old = new_config(workspace, "factors", model_path=str(tmp_path / "run"))
    slots = {"wte/adafactor_vr": 320, "wte/adafactor_vc": 16, "wte/adafactor_m": (320, 16), "ln_f/g/adafactor_v": 16}
    ones: dict[str, Any] = {name: np.ones(size, np.float32) for name, size in slots.items()}
    path = random_checkpoint(tmp_path / "run", old, **ones)
    report.write_config(old)
    keys: dict[str, Any] = {"n_vocab": n_vocab}
    if n_vocab == 320:
        other = make_tokenizer(tmp_path / "other", n_vocab=300, texts=["zebra zebra quagga quagga zebra"])
        workspace.dataset("factor_tokens", None, path="none", n_vocab=300, tokenizer_path=str(other))
        keys["datasets"] = ["factor_tokens"]
    found = {f"gpt2/{name}": tf.Variable(tf.zeros([size if size == 16 else n_vocab])) for name, size in slots.items()}
    found["gpt2/wte/adafactor_m"] = tf.Variable(tf.zeros([n_vocab, 16]))
    initial = InitialWeights(
        InitFrom(path, keep_optimizer=True, resize_vocab=True), new_config(workspace, "factors_new", **keys)
    )
    initial.fill(found)
    assert not found["gpt2/wte/adafactor_vr"].numpy().any() and not found["gpt2/wte/adafactor_vc"].numpy().any()
    assert (found["gpt2/ln_f/g/adafactor_v"].numpy() == 1).all()
    kept = found["gpt2/wte/adafactor_m"].numpy().any(1)
    assert kept.any() and not kept.all()


def test_a_shorter_context_and_another_window_are_said(workspace: Workspace, theirs: Path) -> None:
    config = new_config(workspace, "shorter", n_ctx=16, local_attention_radius=4)
    changes = InitialWeights(InitFrom(str(theirs)), config).changes()
    assert changes == [
        "context of 16 for 32",
        "local_attention_radius was 8 and is 4 now: the same weights in another model",
    ]


MIXTURES = {"moe_layers": [1], "moe_params": {"moe_num_experts": 4}}


def test_every_key_that_touches_the_function_is_refused_or_said(workspace: Workspace, tmp_path: Path) -> None:
    old = new_config(workspace, "mixed", **MIXTURES, model_path=str(tmp_path / "run"))
    path = random_checkpoint(tmp_path / "run", old)
    report.write_config(old)
    with pytest.raises(InputError, match=r"moe_activation = gelu, but .* has relu; make them equal"):
        InitialWeights(InitFrom(path), new_config(workspace, "gelu_inside", **MIXTURES, moe_activation="gelu"))
    params = {"moe_num_experts": 4, "moe_second_policy_eval": "none", "moe_capacity_factor_eval": 2}
    params["moe_dropout_rate"] = 0.1
    other = new_config(workspace, "other_use", moe_layers=[1], moe_params=params, entmax_loss=True, z_loss=0.5)
    assert InitialWeights(InitFrom(path), other).changes() == [
        "moe_capacity_factor_eval was None and is 2.0 now: the same weights in another model",
        "moe_second_policy_eval was all and is none now: the same weights in another model",
        "entmax_loss was False and is True now: the same weights in another model",
    ]


def test_settings_of_what_a_model_does_not_have_may_differ(workspace: Workspace, theirs: Path) -> None:
    config = new_config(workspace, "unused", moe_activation="gelu", moe_params={"moe_num_experts": 3})
    assert InitialWeights(InitFrom(str(theirs)), config).changes() == []


def test_flags_that_go_with_it(run: Run, workspace: Workspace) -> None:
    with pytest.raises(SystemExit):
        run("--model", workspace.config("flags"), "--keep_optimizer")
    with pytest.raises(SystemExit):
        run("--model", workspace.config("flags"), "--init_from", "x", "--eval")


def test_a_run_is_a_source_too(workspace: Workspace, theirs: Path) -> None:
    """Its directory, with the config that it left there."""
    config = new_config(workspace, "as_source")
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=False)
    directory = workspace.root / "as_source"
    directory.mkdir(exist_ok=True)
    engine.save(str(directory), 5, {})
    (directory / "config.json").write_text(json.dumps(config.to_json()))
    (directory / "dataset_configs").symlink_to(workspace.root / "dataset_configs")
    found = filled(config, InitFrom(str(directory)), training=False)
    np.testing.assert_array_equal(found["gpt2/wte"], engine.store.masters["gpt2/wte"].numpy())
    assert found["global_step"] == 0
    with pytest.raises(InputError, match="n_head = 2, but"):
        InitialWeights(InitFrom(str(directory)), load_config(str(workspace.config("heads", **{**NEO, "n_head": 2}))))
