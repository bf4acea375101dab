"""An exported model, run by a process that knows TensorFlow only, gives what the model gives here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import Tokenizer

from gpt_mesh import api, sample
from gpt_mesh.config import GenerationSettings, load_config
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.errors import InputError
from gpt_mesh.generation.requests import Generated, GenerationRequest
from gpt_mesh.interop import continuation
from gpt_mesh.interop.branches import sizes_to
from gpt_mesh.interop.signatures import Signatures
from gpt_mesh.sample import Row
from tests.support.decoding import generate
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch, unoptimised_graphs
from tests.support.runs import N_CTX, N_VOCAB, ONE_LAYER, Run, Workspace

NEW = 12
SEED = 5
PROMPTS = ["import os\n", "", "def main(x):\n    return 1\n", "import email\n" * 30, "x", "\n", "a b", "é", "for"]
DRAWN = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.2, "min_new_tokens": 3}

# Calls signatures with the arrays of a file, and puts what they give, or why they do not, into another.
CLIENT = """
import sys
import numpy as np
import tensorflow as tf

tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # which takes longer than the calls
folder, calls, results = sys.argv[1:]
model = tf.saved_model.load(folder)
ours = {"api", "config", "model_fns", "models", "sample", "interop", "meshes", "mesh_tensorflow"} & set(sys.modules)
assert not ours, ours
given, found = np.load(calls), {}
for call in sorted({name.split("/")[0] for name in given}):
    arguments = {name.split("/")[1]: tf.constant(given[name]) for name in given if name.split("/")[0] == call}
    try:
        outputs = model.signatures[call.split("-")[0]](**arguments)
        found.update({f"{call}/{name}": x.numpy() for name, x in outputs.items()})
    except tf.errors.InvalidArgumentError as error:
        found[f"{call}/error"] = np.array(str(error))
with tf.compat.v1.Session(graph=tf.Graph()) as session:  # as TensorFlow Serving loads it
    signature = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def["greedy"]
    fed = {tensor.name: given["greedy-three/" + name] for name, tensor in signature.inputs.items()}
    found.update({f"session/{name}": session.run(x.name, fed) for name, x in signature.outputs.items()})
found["weight"] = model.weights["gpt2/h0/attn/q"].numpy()
np.savez(results, **found)
"""


@dataclass(frozen=True)
class Exported:
    """A model with weights that show, its SavedModel, and prompts as token ids."""

    model: api.Model
    config: Path
    folder: Path
    prompts: list[list[int]]

    def call(self, temporary: Path, calls: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
        """What signatures give in a process of their own: by "call/output", a call being "signature-label"."""
        arrays = {f"{call}/{name}": x for call, given in calls.items() for name, x in given.items()}
        np.savez(temporary / "calls.npz", **arrays)
        (temporary / "client.py").write_text(CLIENT)
        paths = [str(temporary / name) for name in ("calls.npz", "results.npz")]
        command = [sys.executable, "-I", str(temporary / "client.py"), str(self.folder), *paths]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return dict(np.load(paths[1]))


@pytest.fixture(scope="module")
def exported(workspace: Workspace) -> Exported:
    path = workspace.config("for_export", **ONE_LAYER, generation={"temperature": 0.7})
    config = load_config(str(path))
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine, scale=0.2)
    Path(config.training.model_path).mkdir()
    engine.save(config.training.model_path, 0, {})
    model = api.load(config)
    folder = workspace.root / "served" / "1"
    assert model.export(str(folder)) == ["generate", "greedy", "logits"]
    return Exported(model, path, folder, [model.encoder.encode(text) for text in PROMPTS])


def padded(rows: list[list[int]]) -> dict[str, np.ndarray]:
    """Prompts of several lengths as the signatures take them; what stands after a prompt means nothing."""
    prompts = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for row, tokens in zip(prompts, rows, strict=True):
        row[: len(tokens)] = tokens
    return {"prompts": prompts, "lengths": np.array([len(row) for row in rows], np.int32)}


def settings(**keys: float) -> dict[str, np.ndarray]:
    """Scalars in the types of the signatures."""
    floats = ("temperature", "top_p", "repetition_penalty")
    return {name: np.array(x, np.float32 if name in floats else np.int32) for name, x in keys.items()}


def rows_of(found: dict[str, np.ndarray], call: str) -> list[list[int]]:
    """The new tokens of each row."""
    tokens, lengths = found[f"{call}/tokens"], found[f"{call}/lengths"]
    assert tokens.shape == (len(lengths), lengths.max())
    return [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]


@pytest.mark.slow
def test_plain_tensorflow_gives_what_the_model_gives(exported: Exported, tmp_path: Path) -> None:
    tokens, prompts = token_batch(exported.model.config, rows=5, width=N_CTX), exported.prompts
    assert len(prompts) > continuation.GROUP and max(map(len, prompts)) > N_CTX and min(map(len, prompts)) == 0
    generated = exported.model.generator()

    def wanted(**keys: Any) -> list[Generated]:
        each = [GenerationSettings(max_new_tokens=NEW, seed=SEED + 7919 * i, **keys) for i in range(len(prompts))]
        return generated.generate([GenerationRequest(p, one) for p, one in zip(prompts, each, strict=True)])

    usual = settings(top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=0, seed=0)
    found = exported.call(
        tmp_path,
        {
            "logits-whole": {"tokens": tokens},
            "logits-short": {"tokens": tokens[1:3, :9]},
            "logits-one": {"tokens": tokens[4:, :1]},
            "greedy-many": {**padded(prompts), **settings(max_new_tokens=NEW)},
            "greedy-three": {**padded(prompts[:3]), **settings(max_new_tokens=NEW)},
            "greedy-one": {**padded(prompts[2:3]), **settings(max_new_tokens=NEW)},
            "generate-drawn": {**padded(prompts), **settings(max_new_tokens=NEW, seed=SEED, **DRAWN)},
            "generate-rows": {  # each row its own settings
                **padded(prompts[:2]), **usual, "temperature": np.array([0.0, 0.9], np.float32),
                "max_new_tokens": np.array([3, NEW], np.int32), "seed": np.array([0, 7919 + SEED], np.int32),
            },
            "logits-wrong": {"tokens": np.array([[N_VOCAB]], np.int32)},
            "logits-long": {"tokens": np.zeros((1, N_CTX + 1), np.int32)},
            "greedy-wrong": {**padded([[1, -2]]), **settings(max_new_tokens=NEW)},
            "greedy-none": {**padded([[1]]), "prompts": np.zeros((0, 1), np.int32), **settings(max_new_tokens=NEW)},
            "generate-rows-wrong": {
                **padded([[1], [2]]), **usual, **settings(max_new_tokens=NEW), "temperature": np.ones(3, np.float32)
            },
            "generate-wrong": {**padded([[1]]), **usual, **settings(max_new_tokens=NEW, temperature=-1.0)},
        },
    )  # fmt: skip
    logits = exported.model.logits(tokens)
    np.testing.assert_allclose(found["logits-whole/logits"], logits, atol=1e-5)
    np.testing.assert_allclose(found["logits-short/logits"], logits[1:3, :9], atol=1e-5)
    np.testing.assert_allclose(found["logits-one/logits"], logits[4:, :1], atol=1e-5)
    greedy = [list(one.tokens) for one in wanted(temperature=0.0)]
    assert len({token for row in greedy for token in row}) > 5, "a model that repeats one token shows little"
    assert rows_of(found, "greedy-many") == greedy
    assert rows_of(found, "greedy-three") == greedy[:3] and rows_of(found, "greedy-one") == greedy[2:3]
    assert rows_of(found, "session") == greedy[:3]
    texts = exported.model.generate(PROMPTS, temperature=0, max_new_tokens=NEW)
    tokenizer = Tokenizer.from_file(str(exported.folder / "assets.extra" / "tokenizer.json"))
    decoded = [tokenizer.decode(row, skip_special_tokens=False) for row in rows_of(found, "greedy-many")]
    assert decoded == [text for (text,) in texts]
    assert rows_of(found, "generate-drawn") == [list(one.tokens) for one in wanted(**DRAWN)]
    alone = [list(one.tokens) for one in wanted(temperature=0.9)][1]
    assert rows_of(found, "generate-rows") == [greedy[0][:3], alone]
    assert "ids are from 0 to n_vocab - 1" in str(found["logits-wrong/error"])
    assert "from 1 to n_ctx" in str(found["logits-long/error"])
    assert "prompts: ids are from 0" in str(found["greedy-wrong/error"])
    assert "prompts: at least one row" in str(found["greedy-none/error"])
    assert "temperature: one value, or one for each row" in str(found["generate-rows-wrong/error"])
    assert "temperature: a number from 0 on" in str(found["generate-wrong/error"])
    np.testing.assert_array_equal(found["weight"], exported.model.engine.snapshot()["gpt2/h0/attn/q"])


def test_only_operations_that_every_tensorflow_has(exported: Exported) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((exported.folder / "saved_model.pb").read_bytes())
    graph = model.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    assert len(nodes) > 100
    assert not {node.op for node in nodes if "PyFunc" in node.op or node.op.startswith("Xla")}
    compiled = [function for function in graph.library.function if function.attr["_XlaMustCompile"].b]
    assert not compiled
    facts = json.loads((exported.folder / "assets.extra" / "model.json").read_text())
    eos_id = exported.model.eos_id
    assert facts == {"n_ctx": N_CTX, "n_vocab": N_VOCAB, "bos_id": None, "eos_id": eos_id, "eos_ids": [eos_id]}


def test_the_command_line_keeps_what_is_there(
    exported: Exported, workspace: Workspace, tmp_path: Path, run: Run
) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "note").write_text("kept")
    status, _, err = run("--model", exported.config, "--export", target)
    assert status == 1 and f"error: {target}: is not empty; name a new folder, or add --overwrite" in err
    status, _, err = run("--model", exported.config, "--export", target, "--overwrite")
    assert status == 1 and "holds note, which is no part of a SavedModel" in err
    assert (target / "note").read_text() == "kept"
    status, _, err = run("--model", workspace.config("never_trained", **ONE_LAYER), "--export", tmp_path / "other")
    assert status == 1 and "there is no checkpoint" in err and not (tmp_path / "other").exists()
    with pytest.raises(SystemExit, match="2"):
        run("--model", exported.config, "--overwrite")


@pytest.mark.slow
def test_the_command_line_replaces_a_saved_model(exported: Exported, tmp_path: Path, run: Run) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "saved_model.pb").write_text("an older one")
    with unoptimised_graphs():
        assert run("--model", exported.config, "--export", target, "--overwrite")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    assert tf.saved_model.contains_saved_model(str(target)) and (target / "variables").is_dir()


def test_a_folder_that_cannot_be_written(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        exported.model.export(str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        exported.model.export(str(tmp_path / "file" / "below"))


def test_models_whose_scores_depend_on_padding_take_whole_contexts() -> None:
    for keys, names in (
        ({"mlm_training": True, "mlm_mask_id": 3}, {"logits"}),
        ({"moe_layers": [1], "moe_params": {"moe_num_experts": 4, "moe_capacity_factor_eval": 1.0}},
         {"logits", "generate", "greedy"}),
    ):  # fmt: skip
        config = tiny_config(**keys)
        found = Signatures(config, make_engine(config, compiled=False).store, SpecialTokens()).functions()
        assert found.keys() == names
        assert found["logits"].input_signature[0].shape.as_list() == [None, config.model.n_ctx]


def test_sizes_of_graphs() -> None:
    assert [sizes_to(n, 16, 4) for n in (8, 16, 17, 64, 2048)] == [
        [8], [16], [16, 17], [16, 64], [16, 64, 256, 1024, 2048],
    ]  # fmt: skip


@pytest.mark.slow
def test_a_model_on_several_devices_is_exported_whole() -> None:
    config = tiny_config(mesh_shape="x:2", layout="heads:x,vocab:x", **ONE_LAYER)
    engine = make_engine(config, compiled=False)
    with unoptimised_graphs():
        engine.create_variables(training=False)
        enlarge_weights(engine)
        tokens = token_batch(config, rows=3, width=config.model.n_ctx)
        found = Signatures(config, engine.store, SpecialTokens()).functions()["logits"](tokens)["logits"].numpy()
        np.testing.assert_allclose(found, engine.logits(tokens).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"attention_types": [[["linear", "local"], 1]], "rotary_emb": True, "num_mem_kv": 2},
        {"moe_layers": [1], "moe_params": {"moe_num_experts": 4}, "axial_pos_emb": [4, 6], "precision": "bfloat16"},
        {"num_kv_heads": 2, "head_dim": 6, "rotary_emb": True, "scale_attn_weights": True, "qk_norm": True},
        {"moe_layers": [1], "moe_params": {"moe_num_experts": 4, "moe_gating": "top_k", "moe_glu": True}},
    ],
    ids=["linear, rotary, memory keys", "experts, axial, bfloat16", "shared heads", "top-k experts"],
)
def test_every_family_gives_what_it_gives_here(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "GROUP", 2)
    monkeypatch.setattr(sample, "CHUNK", 4)
    monkeypatch.setattr(continuation, "MIN_LENGTH", 4)  # lengths of 4, 16 and 24
    monkeypatch.setattr(continuation, "MIN_ROOM", 8)  # rooms of 8 and 24
    config = tiny_config(n_ctx=24, **keys)
    engine, eos_id = make_engine(config, compiled=False), 5
    with unoptimised_graphs():
        engine.create_variables(training=False)
        enlarge_weights(engine)
        functions = Signatures(config, engine.store, SpecialTokens(None, (eos_id,))).functions()
        tokens = token_batch(config, rows=3, width=13)
        wanted = engine.logits(tokens).numpy()
        found = functions["logits"](tokens)["logits"].numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-5 if config.training.precision == "float32" else 0.1)
        prompts = [tokens[0, :13].tolist(), tokens[1, :2].tolist(), tokens[2, :7].tolist()]
        requests = [Row(p, 30, 3 + 7919 * i, temperature=0.9) for i, p in enumerate(prompts)]
        drawn = functions["generate"](**padded(prompts), **settings(
            max_new_tokens=30, temperature=0.9, top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=0, seed=3
        ))  # fmt: skip
        named = {f"drawn/{name}": x.numpy() for name, x in drawn.items()}
        assert rows_of(named, "drawn") == generate(engine, requests, batch=3, eos_ids=(eos_id,))
