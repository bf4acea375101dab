"""A Hugging Face folder becomes a checkpoint and configs; what cannot is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt_mesh.config import load_config
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.interop.architectures.gpt_neo import GPTNeo
from gpt_mesh.interop.huggingface import main
from gpt_mesh.interop.import_model import import_model
from gpt_mesh.interop.torch_files import TorchFile
from gpt_mesh.interop.weights import HuggingFaceWeights
from gpt_mesh.training import runs
from tests.support.hugging_face import random_state, write_folder, write_torch
from tests.support.runs import Workspace, weights

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line: its status and its last line on standard error."""

    def command(*flags: object) -> tuple[int, str]:
        status = main([str(flag) for flag in flags])
        return status, (capsys.readouterr().err.splitlines() or [""])[-1]

    return command


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_every_weight_arrives(workspace: Workspace, tmp_path: Path, form: str) -> None:
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, form=form)
    done = import_model(str(folder), "neo", config_dir=str(tmp_path), model_path=str(tmp_path / "run"))
    state, stored, config = random_state(), weights(Path(done.checkpoint)), load_config(done.config)
    exchanges = GPTNeo().exchanges(config.model)
    names = [name for exchange in exchanges for name in exchange.ours]
    assert stored.keys() == {*names, "global_step"} and stored["global_step"] == 0
    for exchange in exchanges:
        [name], [theirs] = exchange.ours, exchange.theirs
        is_linear = state[theirs].ndim == 2 and name not in ("gpt2/wte", "gpt2/wpe")
        wanted = state[theirs].T if is_linear else state[theirs]
        np.testing.assert_array_equal(stored[name], wanted, err_msg=name)
    assert (config.model.n_vocab, config.model.n_ctx, config.model.local_attention_radius) == (320, 32, 8)
    assert config.model.attention_types == ("global", "local")
    dataset = config.data.datasets[0].dataset
    assert (dataset.n_vocab, dataset.eos_id) == (320, 0)
    assert os.path.samefile(dataset.resolve(str(dataset.tokenizer_path)), done.tokenizer)
    as_run, _ = runs.find(str(tmp_path / "run"))
    assert as_run.model == config.model and runs.find_checkpoint(as_run) == done.checkpoint
    dataset = as_run.data.datasets[0].dataset
    assert os.path.samefile(dataset.resolve(str(dataset.tokenizer_path)), done.tokenizer)


def test_an_index_may_name_a_tied_output_layer_that_no_file_holds(workspace: Workspace, tmp_path: Path) -> None:
    """Some published folders do; transformers loads them."""
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, form="shards")
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["lm_head.weight"] = max(values["weight_map"].values())
    index.write_text(json.dumps(values))
    read = HuggingFaceWeights(str(folder))
    np.testing.assert_array_equal(read.read("gpt2/wte"), random_state()["transformer.wte.weight"])


def test_a_tensor_that_is_not_where_the_index_says(workspace: Workspace, tmp_path: Path) -> None:
    state = random_state()
    del state["transformer.h.1.ln_2.bias"]
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, form="shards", state=state)
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    file = values["weight_map"]["transformer.h.1.ln_2.bias"] = max(values["weight_map"].values())
    index.write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"h.1.ln_2.bias is not in {file}, where the index says"):
        HuggingFaceWeights(str(folder))


def test_an_index_may_begin_with_a_byte_order_mark_and_not_with_endless_brackets(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, form="shards")
    index = folder / "model.safetensors.index.json"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    read = HuggingFaceWeights(str(folder))
    np.testing.assert_array_equal(read.read("gpt2/wte"), random_state()["transformer.wte.weight"])
    index.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"index.json: brackets are nested too deeply"):
        HuggingFaceWeights(str(folder))


def test_a_bare_model_is_read_too(workspace: Workspace, tmp_path: Path) -> None:
    state = {name.removeprefix("transformer."): array for name, array in random_state().items()}
    keys: dict[str, Any] = {"architectures": ["GPTNeoModel"]}
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, state=state, **keys)
    done = import_model(str(folder), "neo", config_dir=str(tmp_path), model_path=str(tmp_path / "run"))
    np.testing.assert_array_equal(weights(Path(done.checkpoint))["gpt2/wte"], state["wte.weight"])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_type": "bert"}, "model_type = 'bert'"),
        ({"architectures": ["GPTNeoForSequenceClassification"]}, "architectures"),
        ({"architectures": 5}, "architectures = 5"),
        ({"hidden_size": None}, "n_embd"),
        ({"activation_function": "quick_gelu"}, 'activation_function = "quick_gelu"'),
        ({"activation_function": []}, "activation_function = []"),
        ({"intermediate_size": 100}, "config.json makes it [100, 16]"),
        ({"layer_norm_epsilon": 0}, "norm_epsilon = 0"),
        ({"num_heads": 3}, "n_head = 3"),
        ({"attention_types": [[["global"], 3]]}, "attention_types"),
        ({"hidden_size": 32}, "transformer.wte.weight has shape [320, 16], but config.json makes it [320, 32]"),
        ({"num_layers": 4, "attention_types": [[["global"], 4]]}, "no tensor transformer.h.2.ln_1.weight"),
        ({"vocab_size": 300}, "shape"),
        ({"eos_token_id": 50256}, "has no token 50256"),
        ({"eos_token_id": -1}, "has no token -1"),
    ],
)
def test_a_model_that_is_not_one_is_refused(
    workspace: Workspace, tmp_path: Path, command: Command, keys: dict[str, Any], words: str
) -> None:
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, state=random_state(), **keys)
    status, line = command("import", folder, "--name", "neo", "--config_dir", tmp_path, "--model_path", tmp_path / "r")
    assert status == 1 and line.startswith("error: ") and words in line
    assert not (tmp_path / "neo.json").exists() and not checkpoints.steps(str(tmp_path / "r"))


def damage(folder: Path, how: str) -> None:
    """One thing that goes wrong with files."""
    model = folder / "model.safetensors"
    if how == "missing shard":
        (folder / "model-00002-of-00003.safetensors").unlink()
    elif how == "truncated":
        model.write_bytes(model.read_bytes()[:-100])
    elif how == "truncated shard":
        shard = folder / "model-00002-of-00003.safetensors"
        shard.write_bytes(shard.read_bytes()[:-100])
    elif how == "nan":
        state = random_state()
        state["transformer.h.1.mlp.c_fc.weight"][3, 5] = np.nan
        save_file(state, model)
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        model.unlink()
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "index outside":
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace("model-00002", "../model-00002"))
    elif how == "truncated bin":
        path = folder / "pytorch_model.bin"
        path.write_bytes(path.read_bytes()[:-3000])


@pytest.mark.parametrize(
    ("how", "form", "words"),
    [
        ("missing shard", "shards", "model-00002-of-00003.safetensors is missing"),
        ("truncated", "safetensors", "damaged or incomplete"),
        ("truncated shard", "shards", "model-00002-of-00003.safetensors: cannot be read"),
        ("nan", "safetensors", "transformer.h.1.mlp.c_fc.weight has elements that are not finite"),
        ("no config", "safetensors", "config.json: cannot be read (No such file"),
        ("no weights", "safetensors", "has no weights"),
        ("no tokenizer", "safetensors", "--tokenizer"),
        ("index outside", "shards", "no file of this folder"),
        ("truncated bin", "bin", "damaged or incomplete"),
    ],
)
def test_damaged_files_are_refused(
    workspace: Workspace, tmp_path: Path, command: Command, how: str, form: str, words: str
) -> None:
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, form=form)
    damage(folder, how)
    status, line = command("import", folder, "--name", "neo", "--config_dir", tmp_path, "--model_path", tmp_path / "r")
    assert status == 1 and line.startswith("error: ") and words in line
    left = [path.name for path in (tmp_path / "r").glob("*")] if (tmp_path / "r").exists() else []
    assert not left, "half a checkpoint"


def test_a_tokenizer_with_more_tokens_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, vocab_size=256)
    with pytest.raises(InputError, match=r"320 tokens, but .* says vocab_size = 256"):
        import_model(str(folder), "neo", config_dir=str(tmp_path), model_path=str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_nothing_is_replaced_unasked(workspace: Workspace, tmp_path: Path, command: Command) -> None:
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer)
    flags = ("import", folder, "--name", "neo", "--config_dir", tmp_path, "--model_path", tmp_path / "run")
    assert command(*flags)[0] == 0
    status, line = command(*flags)
    assert status == 1 and "neo.json would be replaced" in line and "--overwrite" in line
    assert command(*flags, "--overwrite")[0] == 0


def test_a_run_is_there_until_what_replaces_it_is_known_to_be_sound(
    workspace: Workspace, tmp_path: Path, command: Command
) -> None:
    folder, run = write_folder(tmp_path / "theirs", workspace.tokenizer), tmp_path / "run"
    flags = ("import", folder, "--name", "neo", "--config_dir", tmp_path, "--model_path", run)
    assert command(*flags)[0] == 0
    for suffix in (".index", ".data-00000-of-00001"):  # as after training
        (run / f"model.ckpt-0{suffix}").rename(run / f"model.ckpt-7{suffix}")
    (run / "metrics.jsonl").write_text("{}\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    damage(folder, "nan")
    status, line = command(*flags, "--overwrite")
    assert status == 1 and "not finite" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    shutil.rmtree(folder)
    write_folder(folder, workspace.tokenizer)
    assert command(*flags, "--overwrite")[0] == 0
    assert checkpoints.steps(str(run)) == [0] and checkpoints.latest(str(run)) == str(run / "model.ckpt-0")
    assert not [name for name in ("metrics.jsonl", ".importing", ".run.lock") if (run / name).exists()]
    np.testing.assert_array_equal(weights(run / "model.ckpt-0")["gpt2/wte"], random_state()["transformer.wte.weight"])


@pytest.mark.parametrize("in_the_way", ["checkpoint/file", "tokenizer", "config.json/file"])
def test_what_cannot_be_written_is_said_in_one_line(
    workspace: Workspace, tmp_path: Path, command: Command, in_the_way: str
) -> None:
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer)
    path = tmp_path / "run" / in_the_way
    path.parent.mkdir(parents=True)
    path.write_text("")
    flags = ("import", folder, "--name", "neo", "--config_dir", tmp_path, "--model_path", tmp_path / "run")
    status, line = command(*flags)
    assert status == 1 and line.startswith(f"error: {tmp_path / 'run'}: cannot be written (")


@pytest.mark.parametrize("form", ["byte-level-bpe.tokenizer.json", "encoder.json"])
def test_a_tokenizer_is_kept_whatever_its_files_are_called(workspace: Workspace, tmp_path: Path, form: str) -> None:
    given = tmp_path / "given"
    given.mkdir()
    if form == "encoder.json":
        load_encoder(str(workspace.tokenizer)).tokenizer.model.save(str(given))
        (given / "vocab.json").rename(given / "encoder.json")
        (given / "merges.txt").rename(given / "vocab.bpe")
    else:
        shutil.copyfile(workspace.tokenizer, given / form)
    (given / "tokenizer_config.json").write_text("{}")
    folder = write_folder(tmp_path / "theirs", None)
    done = import_model(
        str(folder), "neo", config_dir=str(tmp_path), model_path=str(tmp_path / "run"), tokenizer=str(given)
    )
    assert load_encoder(done.tokenizer).fingerprint == load_encoder(str(given)).fingerprint
    assert (tmp_path / "run" / "tokenizer" / "tokenizer_config.json").exists()


class _Evil:
    """Whose pickle makes a file when it is loaded as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.path}'",))


def test_a_pickle_of_anything_else_is_never_run(tmp_path: Path) -> None:
    path, made = tmp_path / "pytorch_model.bin", tmp_path / "was-run"
    for evil in (_Evil(made), {"a": _Evil(made)}):
        pickled = pickle.dumps(evil)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
        with pytest.raises(InputError, match=r"asks for (posix|nt)\.system, which no tensor needs"):
            TorchFile(str(path))
        assert not made.exists()
        pickle.loads(pickled)
        assert made.exists(), "what was refused does nothing"
        made.unlink()


def test_an_import_of_a_pickle_of_anything_else_leaves_nothing(
    workspace: Workspace, tmp_path: Path, command: Command
) -> None:
    folder, made = write_folder(tmp_path / "theirs", workspace.tokenizer, form="bin"), tmp_path / "was-run"
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"transformer.wte.weight": _Evil(made)}))
    status, line = command("import", folder, "--name", "neo", "--config_dir", tmp_path, "--model_path", tmp_path / "r")
    assert status == 1 and "pytorch_model.bin: not a file of weights alone" in line
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def _nested_key() -> bytes:
    """A few hundred bytes: the storage's key is a tuple of two, nested so deep that its text would take gigabytes."""
    opcodes = pickle.PROTO + b"\x02" + pickle.BINUNICODE + b"\x01\0\0\0a" + pickle.BINPUT + b"\0"
    for i in range(40):
        twice = pickle.BINGET + bytes([i])
        opcodes += twice + twice + pickle.TUPLE2 + pickle.BINPUT + bytes([i + 1]) + pickle.POP
    kind = pickle.BINUNICODE + b"\x07\0\0\0storage" + pickle.GLOBAL + b"torch\nFloatStorage\n"
    return opcodes + pickle.MARK + kind + pickle.BINGET + bytes([40]) + pickle.TUPLE + pickle.BINPERSID + pickle.STOP


def _endless_copies() -> bytes:
    """Each few bytes ask for another copy of a dictionary of 10,000 entries."""
    opcodes = pickle.dumps({i: i for i in range(10_000)}, 2)[:-1] + pickle.LONG_BINPUT + b"\xff\xff\0\0"
    opcodes += (
        pickle.POP + pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.LONG_BINPUT + b"\xfe\xff\0\0" + pickle.POP
    )
    copy = pickle.LONG_BINGET + b"\xfe\xff\0\0" + pickle.LONG_BINGET + b"\xff\xff\0\0" + pickle.TUPLE1 + pickle.REDUCE
    return opcodes + pickle.EMPTY_LIST + (copy + pickle.APPEND) * 100_000 + pickle.STOP


@pytest.mark.parametrize(
    ("pickled", "byteorder", "words"),
    [
        (_nested_key(), b"little", "not a storage"),
        (_endless_copies(), b"little", "without end"),
        (pickle.dumps({}), b"\0" * (1 << 28), "byteorder is longer"),
    ],
    ids=["nested key", "endless copies", "long byte order"],
)
def test_a_file_that_would_take_all_memory_is_refused(
    tmp_path: Path, pickled: bytes, byteorder: bytes, words: str
) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=words):
            TorchFile(str(tmp_path / "x.bin"))
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, np.complex64])
def test_a_type_that_cannot_be_read_is_refused_whole(workspace: Workspace, tmp_path: Path, kind: Any) -> None:
    state: dict[str, Any] = dict(random_state())
    state["transformer.ln_f.bias"] = state["transformer.ln_f.bias"].astype(kind)
    folder = write_folder(tmp_path / "theirs", workspace.tokenizer, state=state)
    with pytest.raises(InputError, match=r"tensor transformer.ln_f.bias is of type .*, which cannot be read"):
        import_model(str(folder), "neo", config_dir=str(tmp_path), model_path=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2]])
def test_a_pickle_of_no_tensors_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))
    with pytest.raises(InputError, match="not a dictionary of tensors"):
        TorchFile(str(path))


@pytest.mark.parametrize(
    ("flags", "method", "words"), [(1, 0, "encrypted"), (0, 99, "compression"), (0, 8, "decompressing")]
)
def test_a_storage_that_zip_cannot_read_is_refused(tmp_path: Path, flags: int, method: int, words: str) -> None:
    path, name = tmp_path / "pytorch_model.bin", b"archive/data/0"
    write_torch(path, {"a": np.full((3, 4), 7, np.float32)})
    data = bytearray(path.read_bytes())
    struct.pack_into("<HH", data, data.index(name) - 30 + 6, flags, method)  # in the file's own header
    struct.pack_into("<HH", data, data.rindex(name) - 46 + 8, flags, method)  # and in the archive's directory
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"tensor a cannot be read .*{words}"):
        TorchFile(str(path)).read("a")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    wide = np.lib.stride_tricks.as_strided(array, (3, 4), (64, 4))
    write_torch(path, {"a": array})
    file = TorchFile(str(path))
    np.testing.assert_array_equal(file.read("a"), array)

    class Claim:
        shape, strides, size = wide.shape, wide.strides, 12

        def tobytes(self) -> bytes:
            return array.tobytes()

    write_torch(path, {"a": Claim()})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="reaches beyond its storage"):
        TorchFile(str(path)).read("a")
