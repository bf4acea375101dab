"""Checkpoints: whole or not there, and read back exactly on any mesh."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.engine import checkpoints, verify
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files
from tests.support.models import (
    ONE_LAYER,
    assert_all_close,
    enlarge_weights,
    is_weight,
    make_engine,
    tiny_config,
    token_batch,
    train,
)


def some_variables(value=1.0):
    with tf.device("/device:CPU:0"):
        return {
            "gpt2/wte": tf.Variable(value * np.arange(12, dtype=np.float32).reshape(4, 3)),
            "gpt2/wte/adam_m": tf.Variable(np.full((4, 3), value, np.float32)),
            "global_step": tf.Variable(int(value), dtype=tf.int64),
        }


def save(directory, step, state=None):
    return checkpoints.save(str(directory), step, some_variables(step), state or {})


def values(variables):
    return {name: variable.numpy() for name, variable in variables.items()}


def truncate(path, keep):
    """Cut a file to a part of its bytes, as a full disk or a broken copy does."""
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_restored(tmp_path):
    state = {"samples": 123, "interval": {"loss": 0.5}, "data": "ab"}
    path = save(tmp_path, 7, state)
    assert path == str(tmp_path / "model.ckpt-7")
    fresh = some_variables(0.0)
    assert checkpoints.restore(path, fresh, "tiny.json") == []
    assert_all_close(values(fresh), values(some_variables(7)), rtol=0)
    assert checkpoints.restore_state(path) == state
    assert checkpoints.step_of(path) == 7
    assert sorted(os.listdir(tmp_path)) == [
        "checkpoint",
        "model.ckpt-7.data-00000-of-00001",
        "model.ckpt-7.index",
        "model.ckpt-7.json",
    ]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_where_they_are_used(tmp_path, number):
    variables = some_variables()
    variables["gpt2/wte"][2, 1].assign(number)
    path = checkpoints.save(str(tmp_path), 3, variables, {})
    with pytest.raises(InputError, match=r"model\.ckpt-3: gpt2/wte has elements that are not finite") as caught:
        checkpoints.restore(path, some_variables(), "tiny.json", finite=True)
    assert "\n" not in str(caught.value)
    assert checkpoints.restore(path, some_variables(), "tiny.json") == []


def test_other_programs_find_the_newest(tmp_path):
    save(tmp_path, 5)
    path = save(tmp_path, 12)
    assert tf.train.latest_checkpoint(str(tmp_path)) == path == checkpoints.latest(str(tmp_path))
    state = tf.train.get_checkpoint_state(str(tmp_path))
    assert [os.path.basename(p) for p in state.all_model_checkpoint_paths] == ["model.ckpt-5", "model.ckpt-12"]
    moved = tmp_path.rename(tmp_path.parent / "moved")
    assert tf.train.latest_checkpoint(str(moved)) == str(moved / "model.ckpt-12"), "paths inside are relative"


def test_the_newest_five_are_kept(tmp_path):
    for step in (1, 2, 9, 10, 11, 100, 101):
        save(tmp_path, step)
    assert checkpoints.steps(str(tmp_path)) == [9, 10, 11, 100, 101]
    assert {name.split(".")[1] for name in os.listdir(tmp_path) if name != "checkpoint"} == {
        f"ckpt-{step}" for step in (9, 10, 11, 100, 101)
    }


def test_a_run_taken_back_to_an_earlier_step_leaves_none_of_the_later_ones(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "model.ckpt-30")
    save(tmp_path, 15)
    assert checkpoints.steps(str(tmp_path)) == [10, 15]
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "model.ckpt-15")


def test_a_step_saved_again_is_the_new_one(tmp_path):
    save(tmp_path, 7)
    path = checkpoints.save(str(tmp_path), 7, some_variables(3.0), {"again": 1})
    fresh = some_variables(0.0)
    checkpoints.restore(path, fresh, "tiny.json")
    assert int(fresh["global_step"]) == 3
    assert checkpoints.restore_state(path) == {"again": 1}


def leave_writing(directory, step, *, moved=()):
    """What a kill leaves of a save: temporary files, those of `moved` already under their final names."""
    for suffix in (".index", ".data-00000-of-00001", ".json"):
        name = f"model.ckpt-{step}{'' if suffix in moved else '.writing'}{suffix}"
        (directory / name).write_bytes(b"half")
    (directory / f"model.ckpt-{step}.writing.data-00000-of-00001.tempstate123").write_bytes(b"half")
    (directory / "checkpoint.1.tmp").write_bytes(b"half")


@pytest.mark.parametrize("moved", [(), (".json",), (".json", ".data-00000-of-00001")])
def test_what_a_killed_save_leaves_is_ignored_and_then_removed(tmp_path, moved):
    save(tmp_path, 10)
    leave_writing(tmp_path, 20, moved=moved)
    assert checkpoints.steps(str(tmp_path)) == [10]
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    save(tmp_path, 30)
    left = {name for name in os.listdir(tmp_path) if "30" not in name and "ckpt-10." not in name}
    assert left == {"checkpoint"}


@pytest.mark.parametrize("survived", [0, 1, 2, 3, 4])
def test_a_save_killed_between_any_two_moves_leaves_a_whole_checkpoint(tmp_path, monkeypatch, survived):
    save(tmp_path, 10)
    move = files.move
    calls: list[object] = []

    def killed(*args, **keys):
        if len(calls) == survived:
            raise KeyboardInterrupt
        calls.append(args)
        move(*args, **keys)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "move", killed)
        save(tmp_path, 20)
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    (tmp_path / "checkpoint").unlink()
    newest = 20 if survived == 4 else 10
    path = str(tmp_path / f"model.ckpt-{newest}")
    assert checkpoints.latest(str(tmp_path)) == path
    fresh = some_variables(0.0)
    checkpoints.restore(path, fresh, "tiny.json")
    assert int(fresh["global_step"]) == newest


def test_what_a_killed_save_leaves_is_removed_when_its_step_is_saved_again(tmp_path):
    leave_writing(tmp_path, 10)
    (tmp_path / "model.ckpt-10.writing.data-00000-of-00002").write_bytes(b"of an older writer")
    save(tmp_path, 10)
    assert not [name for name in os.listdir(tmp_path) if "writing" in name]


def test_a_save_killed_before_the_state_file_still_counts(tmp_path):
    """The state file names 10, but 20 is whole: the one named is taken, as every reader of such files does."""
    save(tmp_path, 10)
    before = (tmp_path / "checkpoint").read_bytes()
    save(tmp_path, 20)
    (tmp_path / "checkpoint").write_bytes(before)
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    save(tmp_path, 20)
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "model.ckpt-20")


@pytest.mark.parametrize("missing", [".index", ".data-00000-of-00001"])
def test_latest_falls_back_when_the_named_one_is_not_whole(tmp_path, missing):
    for step in (10, 20, 30):
        save(tmp_path, step)
    (tmp_path / f"model.ckpt-30{missing}").unlink()
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "model.ckpt-20")


@pytest.mark.parametrize("content", [None, b"", b"\x00\x00 not a state file {"])
def test_latest_falls_back_without_a_readable_state_file(tmp_path, content):
    for step in (9, 10):
        save(tmp_path, step)
    (tmp_path / "checkpoint").unlink()
    if content is not None:
        (tmp_path / "checkpoint").write_bytes(content)
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "model.ckpt-10")


def test_no_directory_and_an_empty_one_have_none(tmp_path):
    for directory in (str(tmp_path), str(tmp_path / "missing")):
        assert checkpoints.latest(directory) is None
        assert checkpoints.steps(directory) == []
        assert checkpoints.delete_all(directory) == 0


def test_delete_all_leaves_what_is_not_of_checkpoints(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    leave_writing(tmp_path, 3)
    for name in ("metrics.jsonl", "eval.jsonl", "events.out.tfevents.1.host", "notes.txt", "config.json"):
        (tmp_path / name).write_text("x")
    assert checkpoints.delete_all(str(tmp_path)) == 2
    left = set(os.listdir(tmp_path)) - {"checkpoint.1.tmp"}
    assert left == {"notes.txt", "config.json"}


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def refusal(path, variables):
    with pytest.raises(InputError) as caught:
        checkpoints.restore(str(path), variables, "tiny.json")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_variable_of_another_shape_is_refused_by_name(tmp_path):
    path = save(tmp_path, 7)
    variables = some_variables() | {"gpt2/wte": tf.Variable(np.zeros((4, 5), np.float32))}
    assert refusal(path, variables) == (
        f"{path}: variable gpt2/wte has shape [4, 3], but tiny.json makes it [4, 5]; use the config that the "
        "checkpoint was trained with, or another model_path"
    )


def test_a_missing_variable_is_refused_by_name_and_changes_nothing(tmp_path):
    path = save(tmp_path, 7)
    variables = some_variables(0.0) | {"gpt2/zzz": tf.Variable([1.0])}
    assert refusal(path, variables).startswith(f"{path}: has no variable gpt2/zzz, which tiny.json asks for")
    assert int(variables["global_step"]) == 0 and not variables["gpt2/wte"].numpy().any()


def test_missing_slots_are_reported_and_left(tmp_path):
    path = save(tmp_path, 7)
    slots = {
        "gpt2/wte/adam_v": tf.Variable(np.full((4, 3), 5, np.float32)),
        "gpt2/wte/adafactor_vr": tf.Variable(np.full(4, 6, np.float32)),
    }
    assert checkpoints.restore(path, some_variables() | slots, "tiny.json") == list(slots)
    assert (slots["gpt2/wte/adam_v"].numpy() == 5).all()


def test_a_checkpoint_of_another_program_has_no_state(tmp_path):
    path = save(tmp_path, 7)
    os.remove(path + ".json")
    assert checkpoints.restore_state(path) == {}


def test_bfloat16_weights_are_widened(tmp_path):
    numbers = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    stored = {"gpt2/wte": tf.Variable(tf.cast(numbers, tf.bfloat16)), "global_step": tf.Variable(9, dtype=tf.int64)}
    path = checkpoints.save(str(tmp_path), 9, stored, {})
    fresh = some_variables(0.0)
    assert checkpoints.restore(path, fresh, "tiny.json") == ["gpt2/wte/adam_m"]
    assert fresh["gpt2/wte"].dtype == tf.float32
    np.testing.assert_array_equal(fresh["gpt2/wte"], tf.cast(stored["gpt2/wte"], tf.float32))
    np.testing.assert_allclose(fresh["gpt2/wte"], numbers, rtol=2**-8)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_a_truncated_data_file_is_an_input_error(tmp_path, keep):
    path = save(tmp_path, 7)
    truncate(tmp_path / "model.ckpt-7.data-00000-of-00001", keep)
    message = refusal(path, some_variables(0.0))
    assert message.startswith(f"{path}: variable ") and "damaged" in message


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_a_truncated_index_is_an_input_error(tmp_path, keep):
    path = save(tmp_path, 7)
    truncate(tmp_path / "model.ckpt-7.index", keep)
    assert refusal(path, some_variables(0.0)).startswith(f"{path}: not a readable checkpoint")


def test_flipped_bytes_are_an_input_error(tmp_path):
    path = save(tmp_path, 7)
    data = tmp_path / "model.ckpt-7.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(bytes(content))
    assert "damaged" in refusal(path, some_variables(0.0))


def test_no_such_checkpoint_is_an_input_error(tmp_path):
    assert refusal(tmp_path / "model.ckpt-3", some_variables()).startswith(f"{tmp_path}/model.ckpt-3: not a readable")


def test_a_name_without_a_step_is_an_input_error():
    with pytest.raises(InputError, match=r"runs/best: not a checkpoint's name"):
        checkpoints.step_of("runs/best")


# ---------------------------------------------------------------------------------------------------------------------
# Engines
# ---------------------------------------------------------------------------------------------------------------------


def test_names_in_the_file_are_those_of_published_checkpoints(tmp_path):
    engine = make_engine(tiny_config())
    engine.create_variables(training=True)
    path = engine.save(str(tmp_path), 0, {})
    blocks = [f"norm_{n}/{part}" for n in (1, 2) for part in "gb"]
    blocks += [f"attn/{part}" for part in "qkvo"] + ["attn/compute_output_bias/o_b"]
    blocks += [f"mlp/conv1d_main/{dense}/{part}" for dense in ("c_fc", "c_proj") for part in ("kernel", "bias")]
    weights = ["wte", "wpe", "ln_f/g", "ln_f/b"] + [f"h{i}/{name}" for i in range(2) for name in blocks]
    wanted = {f"gpt2/{name}{slot}" for name in weights for slot in ("", "/adam_m", "/adam_v")} | {"global_step"}
    listed = dict(tf.train.list_variables(path))
    assert listed.keys() == wanted
    for name in weights:
        assert listed[f"gpt2/{name}"] == listed[f"gpt2/{name}/adam_m"] == listed[f"gpt2/{name}/adam_v"]
    assert listed["gpt2/wte"] == [64, 16] and listed["global_step"] == []
    assert tf.train.load_variable(path, "global_step").dtype == np.int64


def stored_values(path):
    return {name: tf.train.load_variable(path, name) for name, _ in tf.train.list_variables(path)}


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh_shape": "a:2", "layout": "heads:a,vocab:a"},
        pytest.param({"mesh_shape": "a:2,b:2", "layout": "batch:a,heads:b,vocab:b"}, marks=pytest.mark.slow),
        pytest.param({"mesh_shape": "a:2,b:2", "layout": "embd:a,batch:b"}, marks=pytest.mark.slow),
    ],
)
def test_from_one_device_to_several_and_back(tmp_path, mesh):
    """Values, slots and step are carried over exactly, and training goes on as if it had never moved."""
    keys = {**ONE_LAYER, "lr": 0.003, "warmup_steps": 2, "res_dropout": 0.1}
    single = tiny_config(**keys)
    first = make_engine(single, compiled=False)
    train(first, 3)
    moved = first.save(str(tmp_path), 3, {})

    on_several = make_engine(tiny_config(**keys, **mesh))
    on_several.create_variables(training=True)
    assert on_several.restore(moved) == []
    again = on_several.save(str(tmp_path), 4, {})
    assert_all_close(stored_values(again), stored_values(moved), rtol=0)
    on_several_losses = train(on_several, 2, seed=3)
    back = on_several.save(str(tmp_path), 5, {})

    second = make_engine(single, compiled=False)
    second.create_variables(training=True)
    assert second.restore(back) == []
    assert int(second.global_step) == 5
    assert [*on_several_losses, *train(second, 1, seed=5)] == pytest.approx(train(first, 3, seed=3), rel=1e-5)
    last = second.save(str(tmp_path), 6, {})
    second.restore(last)
    assert_all_close(values(second.store.masters), stored_values(last), rtol=0)


def test_a_restored_mesh_scores_with_the_restored_weights(tmp_path):
    """Slices that exist already are filled again."""
    single = make_engine(tiny_config(), compiled=False)
    single.create_variables(training=False)
    enlarge_weights(single)
    path = single.save(str(tmp_path), 1, {})
    engine = make_engine(tiny_config(mesh_shape="a:2", layout="heads:a,vocab:a"))
    tokens = token_batch(single.config, rows=2, width=16)
    untrained = engine.logits(tokens).numpy()
    engine.restore(path)
    np.testing.assert_allclose(engine.logits(tokens), single.logits(tokens), rtol=1e-5, atol=1e-5)
    assert np.abs(engine.logits(tokens).numpy() - untrained).max() > 0.1


def test_weights_alone_are_restored_into_a_run_that_trains(tmp_path):
    config = tiny_config(**ONE_LAYER)
    weights_only = make_engine(config, compiled=False)
    weights_only.create_variables(training=False)
    path = weights_only.save(str(tmp_path), 0, {"samples": 0})
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=True)
    missing = engine.restore(path)
    assert sorted(missing) == sorted(name for name in engine.store.masters if not is_weight(name) and "/" in name)
    assert checkpoints.restore_state(path) == {"samples": 0}


def test_starting_over_deletes_the_samples_of_the_old_run(tmp_path):
    save(tmp_path, 10)
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in ("samples_step_10.txt", "id_samples_step_10.txt", "prompt_step_10.txt"):
        (folder / name).write_text("text")
    assert checkpoints.delete_all(str(tmp_path)) == 1
    assert [path.name for path in folder.iterdir()] == ["prompt_step_10.txt"]


def test_a_damaged_data_position_is_one_clear_line(tmp_path):
    path = save(tmp_path, 7, {"samples": 123})
    truncate(tmp_path / "model.ckpt-7.json", 0.5)
    with pytest.raises(InputError, match=r"model.ckpt-7.json: is damaged; .* restore it, or delete it") as caught:
        checkpoints.restore_state(path)
    assert "\n" not in str(caught.value)


def test_every_bit_of_the_state_is_covered(tmp_path: Path) -> None:
    """A flip is found, or changes nothing: in a key of the checksum, in the case of an escape."""
    state = {"samples": 240, "data": "ab" * 32, "interval": {"steps": 0, "sums": {"loss": 0.1}}}
    path = checkpoints.save(str(tmp_path), 60, {"w": tf.ones([2])}, state)
    file = tmp_path / "model.ckpt-60.json"
    good, refused = file.read_bytes(), 0
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            found = checkpoints.restore_state(path)
        except InputError as error:
            assert "is damaged" in str(error)
            refused += 1
        else:
            assert {name: found[name] for name in state} == state
    assert refused > 0.9 * 8 * len(good)


def test_a_state_without_a_checksum_is_read(tmp_path: Path) -> None:
    path = checkpoints.save(str(tmp_path), 3, {"w": tf.ones([2])}, {})
    (tmp_path / "model.ckpt-3.json").write_text('{"samples": 7}')
    assert checkpoints.restore_state(path) == {"samples": 7}


def test_files_are_on_disk_before_the_checkpoint_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    sync, move = files.sync, files.move

    def noted_sync(path: str) -> None:
        done.append(("sync", os.path.basename(path)))
        sync(path)

    def noted_move(source: str, target: str) -> None:
        done.append(("move", os.path.basename(target)))
        move(source, target)

    monkeypatch.setattr(files, "sync", noted_sync)
    monkeypatch.setattr(files, "move", noted_move)
    checkpoints.save(str(tmp_path), 3, {"w": tf.ones([2])}, {})
    suffixes = (".json", ".data-00000-of-00001", ".index")
    parts = [done.index(("sync", f"model.ckpt-3.writing{suffix}")) for suffix in suffixes]
    moves = [done.index(("move", f"model.ckpt-3{suffix}")) for suffix in suffixes]
    assert max(parts) < min(moves) and moves[-1] == max(moves)
    announced = done.index(("move", "checkpoint"))
    assert ("sync", tmp_path.name) in done[max(moves) : announced], "the names are on disk too"
    assert done[-1] == ("sync", tmp_path.name)


def test_a_checkpoint_is_verified_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"w": tf.ones([1000]), "v": tf.zeros([1000])}
    for step in (1, 2):
        checkpoints.save(str(tmp_path), step, values, {"samples": step})
    assert verify.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(": complete and undamaged\n") == 2
    for suffix in (".data-00000-of-00001", ".json", ".index"):
        path = tmp_path / f"model.ckpt-2{suffix}"
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 3] ^= 1
        path.write_bytes(bad)
        assert verify.main([str(tmp_path / "model.ckpt-1")]) == 0
        assert verify.main([str(tmp_path)]) == 1, suffix
        out = capsys.readouterr().out
        assert "model.ckpt-2" in out and "model.ckpt-1: complete" in out
        path.write_bytes(good)
    checkpoints.save(str(tmp_path), 3, {"w": tf.constant([1.0, math.nan])}, {})
    assert verify.main([str(tmp_path)]) == 1
    assert "variable w has elements that are not finite numbers" in capsys.readouterr().out
    assert verify.main([str(tmp_path / "none")]) == 1
