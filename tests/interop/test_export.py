"""A checkpoint becomes a Hugging Face folder: what is in it, what cannot be, and what is never replaced.

That transformers loads it is what `tests/peers/test_interop.py` shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gpt_mesh.config import GROUPS, Config, keys, load_config
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.errors import InputError
from gpt_mesh.interop import export_model as exporting
from gpt_mesh.interop.export_model import export_model
from gpt_mesh.interop.huggingface import main
from gpt_mesh.interop.weights import HuggingFaceWeights
from gpt_mesh.training import report
from tests.support.models import LLAMA, tiny_config
from tests.support.runs import Workspace, random_checkpoint, weights

Command = Callable[..., tuple[int, str]]

STEP = 5
SCORES = {"step": STEP, "task": "validation", "nll": 4.25, "perplexity": 70.116, "bits_per_byte": 2.5, "accuracy": 0.25}
BESIDE = {"README.md", "config.json", "generation_config.json", "merges.txt", "special_tokens_map.json",
          "tokenizer.json", "tokenizer_config.json", "vocab.json"}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A run of 16 features and 352 tokens, of which the tokenizer knows 320, with held-out scores."""

    config: Config
    checkpoint: str
    directory: Path


@pytest.fixture(scope="module")
def source(workspace: Workspace) -> Source:
    directory = workspace.root / "exported"
    config = load_config(str(workspace.config("exported", n_embd=16, n_vocab=352)))
    checkpoint = random_checkpoint(directory, config, step=STEP)
    report.write_config(config)
    other = {**SCORES, "step": STEP - 1, "nll": 9.75}
    (directory / "eval.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (other, SCORES)) + '{"step"')
    return Source(config, checkpoint, directory)


@pytest.fixture
def command(source: Source, capsys: pytest.CaptureFixture[str]) -> Command:
    """`export` of that run: its status and its last line on standard error."""

    def command(*flags: object) -> tuple[int, str]:
        status = main(["export", str(source.directory), *map(str, flags)])
        return status, (capsys.readouterr().err.splitlines() or [""])[-1]

    return command


@pytest.mark.parametrize("text", ["\n", "t", "<|endoftext|>"])
def test_only_special_tokens_are_named_special(workspace: Workspace, tmp_path: Path, text: str) -> None:
    """transformers gives our ids, and decodes to the same text, whatever token ends a document."""
    from transformers import AutoTokenizer

    encoder = load_encoder(str(workspace.tokenizer))
    (eos_id,) = encoder.encode(text)
    config = load_config(str(workspace.config("ended", n_embd=16, eos_id=eos_id)))
    folder = tmp_path / "out"
    export_model(config, random_checkpoint(tmp_path / "run", config, step=STEP), str(folder))
    named = [json.loads((folder / f"{name}.json").read_text()) for name in ("special_tokens_map", "tokenizer_config")]
    assert [set(values) >= {"eos_token"} for values in named] == [text == "<|endoftext|>"] * 2
    for name in ("config", "generation_config"):
        assert json.loads((folder / f"{name}.json").read_text())["eos_token_id"] == eos_id
    theirs = AutoTokenizer.from_pretrained(str(folder))
    for line in ("hello there\n\nthe quick brown fox\n", "\u010a \nt<|endoftext|>\n", "attention"):
        ids = encoder.encode(line)
        assert theirs(line)["input_ids"] == ids
        kept = [token for token in ids if token != encoder.eos_id]
        assert theirs.decode(ids, skip_special_tokens=True) == encoder.decode(kept)


def test_everything_that_the_run_has_arrives(source: Source, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "out"
    assert command(folder, "--license", "mit")[0] == 0
    assert {path.name for path in folder.iterdir()} == BESIDE | {"model.safetensors"}
    found, ours = load_file(folder / "model.safetensors"), weights(Path(source.checkpoint))
    assert len(found) == len(ours) - 1  # all but global_step
    np.testing.assert_array_equal(found["transformer.wte.weight"], ours["gpt2/wte"][:320])
    np.testing.assert_array_equal(found["transformer.h.1.attn.attention.k_proj.weight"], ours["gpt2/h1/attn/k"].T)
    np.testing.assert_array_equal(found["transformer.h.0.ln_2.bias"], ours["gpt2/h0/norm_2/b"])
    values = json.loads((folder / "config.json").read_text())
    wanted = {"model_type": "gpt_neo", "vocab_size": 320, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
              "max_position_embeddings": 32, "window_size": 8, "embed_dropout": 0.1, "eos_token_id": 0,
              "attention_types": [[["global", "local"], 1]], "tie_word_embeddings": True}  # fmt: skip
    assert {name: values[name] for name in wanted} == wanted
    tokenizer = source.config.data.datasets[0].dataset.tokenizer_path
    assert load_encoder(str(folder)).fingerprint == load_encoder(str(tokenizer)).fingerprint


def test_the_card_says_what_it_was_trained_on_and_how_well_it_does(tmp_path: Path, command: Command) -> None:
    assert command(tmp_path / "neo", "--license", "mit")[0] == 0
    card = (tmp_path / "neo" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: transformers\n") and "\n# neo\n" in card
    assert "| data | tiny (1) |" in card
    assert f"| training | 5 steps of 4 sequences, {5 * 4 * 32} tokens |" in card
    assert "| validation | 4.25 nats a token, 70.12 perplexity, 2.5 bits a byte, 0.25 accuracy |" in card
    assert "9.75" not in card  # another step's
    assert "| vocabulary | 320 tokens |" in card
    (parameters,) = re.findall(r"\| parameters \| ([\d,]+) \|", card)
    assert int(parameters.replace(",", "")) == sum(
        array.size for array in load_file(tmp_path / "neo" / "model.safetensors").values()
    )


@pytest.mark.parametrize(("dtype", "kind"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_narrow_weights(source: Source, tmp_path: Path, command: Command, dtype: str, kind: Any) -> None:
    assert command(tmp_path / "out", "--dtype", dtype)[0] == 0
    found = load_file(tmp_path / "out" / "model.safetensors")["transformer.wpe.weight"]
    assert found.dtype == kind
    np.testing.assert_array_equal(found, weights(Path(source.checkpoint))["gpt2/wpe"].astype(kind))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_what_float16_cannot_hold_is_refused(source: Source, tmp_path: Path) -> None:
    large = np.full((32, 16), 1e5, np.float32)
    path = random_checkpoint(tmp_path / "large", source.config, wpe=large)
    with pytest.raises(InputError, match="gpt2/wpe has elements beyond float16; export as bfloat16 or float32"):
        export_model(source.config, path, str(tmp_path / "out"), dtype="float16")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    export_model(source.config, path, str(tmp_path / "out"), dtype="bfloat16")


def test_files_are_no_larger_than_asked(tmp_path: Path, command: Command) -> None:
    assert command(tmp_path / "whole")[0] == command(tmp_path / "parts", "--max_shard_size", "12kB")[0] == 0
    parts = sorted((tmp_path / "parts").glob("*.safetensors"))
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    assert [path.name for path in parts] == names
    loaded = {path.name: load_file(path) for path in parts}
    assert len(parts) > 2
    assert all(len(part) == 1 or sum(array.nbytes for array in part.values()) <= 12_000 for part in loaded.values())
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, part in loaded.items() for name in part}
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    joined = {name: array for part in loaded.values() for name, array in part.items()}
    assert joined.keys() == whole.keys() and all((joined[name] == whole[name]).all() for name in whole)


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_a_reward_model_goes_and_comes_back(workspace: Workspace, tmp_path: Path, family: str) -> None:
    shape = {} if family == "gpt_neo" else {**LLAMA, "attention_types": [[["global"], 2]], "scale_attn_weights": True}
    path = workspace.config(f"reward_{family}", **shape, objective="reward", n_embd=16, n_vocab=320)
    config = load_config(str(path))
    checkpoint = random_checkpoint(tmp_path / "run", config)
    export_model(config, checkpoint, str(tmp_path / "out"))
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["architectures"] == [{"gpt_neo": "GPTNeo", "llama": "Llama"}[family] + "ForSequenceClassification"]
    assert values["id2label"] == {"0": "reward"}
    found, ours = load_file(tmp_path / "out" / "model.safetensors"), weights(Path(checkpoint))
    np.testing.assert_array_equal(found["score.weight"], ours["gpt2/reward"])
    assert "lm_head.weight" not in found
    back = HuggingFaceWeights(str(tmp_path / "out"))
    assert back.architecture.reward_head
    assert all(np.array_equal(back.read(name), ours[name]) for name in back.shapes)
    assert {*back.shapes} == {*ours} - {"global_step"}


BEYOND: list[tuple[str, dict[str, Any]]] = [
    ("axial_pos_emb", {"axial_pos_emb": [4, 4]}),
    ("pos_emb", {"rotary_emb": True}),
    ("pos_emb", {"pos_emb": "alibi"}),
    ("pos_emb", {"pos_emb": "none"}),
    ("mlp_glu", {"mlp_glu": True}),
    ("scalenorm", {"scalenorm": True}),
    ("rezero", {"rezero": True}),
    ("macaron", {"macaron": True}),
    ("share_parameters", {"share_parameters": True, "attention_types": [[["global"], 2]]}),
    ("num_mem_kv", {"num_mem_kv": 2}),
    ("gpt_neo_original", {"gpt_neo_original": True}),
    ("num_kv_heads", {"num_kv_heads": 1}),
    ("head_dim", {"head_dim": 8}),
    ("use_bias_in_attn_linear", {"use_bias_in_attn_linear": True}),
    ("use_bias_in_qkv", {"use_bias_in_qkv": True}),
    ("qk_norm", {"qk_norm": True}),
    ("scale_attn_weights", {"scale_attn_weights": True}),
    ("norm", {"norm": "rmsnorm"}),
    ("gpt_neo_original", {"gpt_neo_original": True}),
    ("norm_placement", {"norm_placement": "both"}),
    ("use_bias_in_norms", {"use_bias_in_norms": False}),
    ("use_bias_in_mlp", {"use_bias_in_mlp": False}),
    ("gpt_j_residual", {"gpt_j_residual": True}),
    ("embed_norm", {"embed_norm": True}),
    ("embedding_scale", {"embedding_scale": 4.0}),
    ("lm_head_bias", {"lm_head_bias": True}),
    ("final_logit_softcapping", {"final_logit_softcapping": 30.0}),
    ("moe_layers", {"moe_layers": [1]}),
    ("attention_types", {"attention_types": [[["global", "linear"], 1]]}),
    ("attention_types", {"attention_types": [[["none", "global"], 1]]}),
    ("activation_function", {"activation_function": "selu"}),
    ("entmax_loss", {"entmax_loss": True}),
    ("mlm_training", {"mlm_training": True, "mlm_mask_id": 3}),
]


# What it can be, by the names of the keys.
EXPRESSED = {
    "n_layer", "n_head", "n_embd", "n_ctx", "n_vocab", "n_positions", "local_attention_radius", "no_weight_tie",
    "norm_epsilon", "intermediate_size", "reward_head",
}  # fmt: skip


@pytest.mark.parametrize(("key", "keys"), BEYOND)
def test_what_a_gpt_neo_cannot_be_is_refused_by_name(tmp_path: Path, key: str, keys: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^tiny\.json: (.*, )?{key} = .*: GPT-Neo has no such part; leave out"):
        export_model(tiny_config(**keys), "read by nobody", str(tmp_path / "out"), architecture="gpt_neo")
    assert not (tmp_path / "out").exists()


def test_no_such_key_is_forgotten() -> None:
    touching = {name for group in GROUPS.values() for name, declared in keys(group).items() if declared.touches}
    decided_by_others = {"model", "objective", "moe_activation", "moe_params", "rotary_pct", "rotary_emb_base",
                         "rotary_interleaved", "rope_scaling", "glu_columns", "gpt_j_tied", "reward_head"}  # fmt: skip
    assert touching - EXPRESSED - decided_by_others <= {key for key, _ in BEYOND}


def test_a_folder_in_use_is_left_alone(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert command(folder)[0] == 0, "empty"
    status, line = command(folder)
    assert status == 1 and line.startswith(f"error: {folder}: is not empty") and "--overwrite" in line
    (folder / "model-00001-of-00002.safetensors").write_text("of the model that was here")
    assert command(folder, "--overwrite")[0] == 0
    assert {path.name for path in folder.iterdir()} == BESIDE | {"model.safetensors"}
    (tmp_path / "file").write_text("")
    assert "is a file" in command(tmp_path / "file")[1]


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({}, "has no config.json of one"),
        ({"config.json": '{"n_head": 2}'}, "has no config.json of one"),
        ({"config.json": '{"model_type": "gpt_neo"}', "vocab.json/text": ""}, "holds vocab.json as well"),
        ({"config.json": '{"model_type": "gpt_neo"}', "model.ckpt-5.index": ""}, "holds model.ckpt-5.index as well"),
    ],
)
def test_overwrite_replaces_nothing_but_exported_models(
    tmp_path: Path, command: Command, beside: dict[str, str], words: str
) -> None:
    folder = tmp_path / "mine"
    for name, content in {"README.md": "years of work", **beside}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    before = sorted(folder.rglob("*"))
    status, line = command(folder, "--overwrite")
    assert status == 1 and line.startswith(f"error: {folder}: --overwrite replaces an exported model") and words in line
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", [".", "..", "here"])
def test_the_current_folder_is_never_replaced(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "config.json").write_text('{"model_type": "gpt_neo"}')
    monkeypatch.chdir(here)
    status, line = command(here if name == "here" else name, "--overwrite")
    assert status == 1 and "is the folder that you are in, or holds it" in line
    assert [path.name for path in here.iterdir()] == ["config.json"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*unused: Any, **keys: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(exporting, "save_file", full)
    status, line = command(tmp_path / "out")
    assert status == 1 and line.startswith(f"error: {tmp_path / 'out'}: cannot be written (Error while serializing")
    assert "No space left on device" in line and not list(tmp_path.iterdir())
