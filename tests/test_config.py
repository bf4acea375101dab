"""The config: what it accepts, what it refuses and in which words, and that its documents agree with it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpt_mesh import config
from gpt_mesh.config import (
    CONFIG_DIRECTORY,
    GROUPS,
    Config,
    generation_settings,
    keys,
    load_config,
    parse_config,
    replace,
    shipped_configs,
)
from gpt_mesh.config.json_schema import json_schema
from gpt_mesh.config.page import reference_page
from gpt_mesh.errors import InputError

SCHEMA = jsonschema.Draft202012Validator(json_schema())
ROOT = Path(config.__file__).parents[1]
SHIPPED = shipped_configs()

TOY_DATASET = {"path": "train_*.tfrecords", "eval_path": "eval_*.tfrecords", "n_vocab": 90}
TOY = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "n_ctx": 16,
    "n_vocab": 100,
    "lr": 1e-3,
    "train_batch_size": 8,
    "train_steps": 50,
    "datasets": ["toy"],
    "model_path": "runs/toy",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for model configs, with the dataset config `toy` beside them."""
    root = tmp_path_factory.mktemp("configs")
    (root / "dataset_configs").mkdir()
    (root / "dataset_configs" / "toy.json").write_text(json.dumps(TOY_DATASET))
    return root


@pytest.fixture
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, for tests that change it; the working directory is elsewhere and empty."""
    (tmp_path / "configs" / "dataset_configs").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_dataset(tmp_path / "configs", TOY_DATASET)
    return tmp_path / "configs"


def write_dataset(directory: Path, values: Any, name: str = "toy") -> None:
    (directory / "dataset_configs" / f"{name}.json").write_text(json.dumps(values))


def parse(directory: Path, changes: dict[str, Any] | None = None) -> Config:
    return parse_config({**TOY, **(changes or {})}, "model.json", directory)


def refusal(directory: Path, changes: dict[str, Any]) -> str:
    """The one line with which `changes` are refused."""
    with pytest.raises(InputError) as caught:
        parse(directory, changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_defaults(directory: Path) -> None:
    toy = parse(directory)
    assert toy.model.attention_types == ("global", "global")
    assert toy.model.head_dim == 8
    assert toy.model.n_positions == toy.model.n_ctx == 16
    assert toy.optimizer.lr_decay_end == toy.training.train_steps == 50
    assert toy.training.eval_batch_size == toy.training.train_batch_size == 8
    assert toy.training.predict_max_steps is None
    assert toy.mesh.shape == {} and toy.mesh.rules == {} and toy.mesh.size == 1
    (use,) = toy.data.datasets
    assert (use.id, use.stitch, use.sampling_mode, use.weight) == ("toy", 25, "documents_random", 1.0)
    assert use.dataset.path == ("train_*.tfrecords",)


@pytest.mark.parametrize(
    ("changes", "group", "name", "value"),
    [
        ({"attention_types": [[["global", "local"], 1]]}, "model", "attention_types", ("global", "local")),
        ({"attention_types": [[["local"], 1], [["none"], 1]]}, "model", "attention_types", ("local", "none")),
        ({"attention_types": None}, "model", "attention_types", ("global", "global")),
        ({"activation_fn": "relu"}, "model", "activation_function", "relu"),
        ({"embed_dropout": 0}, "model", "embed_dropout", 0.0),
        ({"axial_pos_emb": [2, 8]}, "model", "axial_pos_emb", (2, 8)),
        ({"moe_layers": [0, 1]}, "model", "moe_layers", (0, 1)),
        ({"moe_layers": None}, "model", "moe_layers", ()),
        ({"train_steps": 1e3}, "training", "train_steps", 1000),
        ({"lr": 1}, "optimizer", "lr", 1.0),
        ({"lr_decay_end": 7}, "optimizer", "lr_decay_end", 7),
        ({"lr_decay_end": None}, "optimizer", "lr_decay_end", 50),
        ({"warmup_steps": 80}, "optimizer", "warmup_steps", 80),
        ({"gradient_clipping": None}, "optimizer", "gradient_clipping", None),
        ({"ada_epsilon1": "1e-30"}, "optimizer", "ada_epsilon1", 1e-30),
        ({"tokens_per_mb_per_replica": None}, "training", "tokens_per_mb_per_replica", None),
        ({"eval_tasks": ["lambada", "wikitext"]}, "training", "eval_tasks", ("lambada", "wikitext")),
        ({"predict_max_steps": 15}, "training", "predict_max_steps", 15),
        ({"mesh_shape": "x:4,y:2"}, "mesh", "shape", {"x": 4, "y": 2}),
        ({"mesh_shape": " x:4 ; y:2 "}, "mesh", "size", 8),
        ({"mesh_shape": None, "layout": None}, "mesh", "layout", ""),
        ({"mesh_shape": "x:2", "layout": "batch:x,embd:x"}, "mesh", "rules", {"batch": "x", "embd": "x"}),
        ({"mlm_training": True, "mlm_mask_id": 99}, "mlm", "mlm_mask_id", 99),
        ({"mlm_mask_ignore_ids": [1, 2]}, "mlm", "mlm_mask_ignore_ids", (1, 2)),
    ],
)
def test_accepts(directory: Path, changes: dict[str, Any], group: str, name: str, value: Any) -> None:
    parsed = getattr(getattr(parse(directory, changes), group), name)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("toy", (25, "documents_random", 1.0)),
        (["toy"], (25, "documents_random", 1.0)),
        (["toy", None, None, None], (25, "documents_random", 1.0)),
        (["toy", 3], (3, "documents_random", 1.0)),
        (["toy", 1, "chunks", 2], (1, "chunks", 2.0)),
        (["toy", 4, "random_sample", 0.5], (4, "documents_random", 0.5)),
    ],
)
def test_dataset_entries(directory: Path, entry: Any, expected: tuple[int, str, float]) -> None:
    (use,) = parse(directory, {"datasets": [entry]}).data.datasets
    assert (use.stitch, use.sampling_mode, use.weight) == expected


def test_published_config_passes() -> None:
    """The keys and values of the config published with the 1.3B checkpoint, ids of the tokenizer among them."""
    published = {
        "n_head": 16, "n_vocab": 50257, "embed_dropout": 0, "lr": 0.0002, "lr_decay": "cosine", "warmup_steps": 3000,
        "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-08, "ada_epsilon1": "1e-30", "ada_epsilon2": 0.001,
        "opt_name": "adam", "weight_decay": 0, "train_batch_size": 512, "attn_dropout": 0, "train_steps": 400000,
        "lr_decay_end": 300000, "eval_steps": 10, "predict_steps": 0, "res_dropout": 0, "eval_batch_size": 128,
        "predict_batch_size": 128, "iterations": 500, "n_embd": 2048, "datasets": [["pile", None, None, None]],
        "model_path": "gs://bucket/models/XL", "n_ctx": 2048, "n_layer": 24, "scale_by_depth": True,
        "scale_by_in": False, "attention_types": [[["global", "local"], 12]], "mesh_shape": "x:128,y:2",
        "layout": "batch:x,memory_length:y,embd:y", "activation_function": "gelu", "recompute_grad": True,
        "gradient_clipping": 1.0, "tokens_per_mb_per_replica": 4096, "precision": "bfloat16", "padding_id": 50257,
        "eos_id": 50256,
    }  # fmt: skip
    parsed = parse_config(published, "GPT3_XL.json")
    assert parsed.model.attention_types == ("global", "local") * 12
    assert parsed.model.head_dim == 128
    assert parsed.mesh.size == 256
    assert parsed.data.datasets[0].dataset.padding_id == 50257  # one past the vocabulary, and meant so


def test_special_ids_of_the_model_config_fill_the_dataset(own_directory: Path) -> None:
    assert parse(own_directory, {"eos_id": 7, "padding_id": 300}).data.datasets[0].dataset.eos_id == 7
    write_dataset(own_directory, {**TOY_DATASET, "eos_id": 5})
    assert parse(own_directory).data.datasets[0].dataset.eos_id == 5
    message = refusal(own_directory, {"eos_id": 7})
    assert message.startswith("model.json: eos_id = 7: ")
    assert "toy.json has eos_id = 5; make the two equal" in message


def test_configs_are_hashable_and_frozen(directory: Path) -> None:
    toy = parse(directory)
    assert hash(toy) == hash(parse(directory))
    with pytest.raises(ValidationError):
        toy.model.n_ctx = 3


# --- what is refused: (changes, key, value as shown, words of the reason and the remedy) -----------------------------

NEAREST = [
    ({"n_embed": 1}, "n_embed", "1", "unknown key; did you mean n_embd?"),
    ({"warmup": 10}, "warmup", "10", "did you mean warmup_steps?"),
    ({"zzqqxx": 1}, "zzqqxx", "1", "unknown key; remove it: docs/parameters.md lists the keys"),
    ({"n_heads": 4}, "n_heads", "4", "unknown key; use n_head"),
    ({"dataset_ids": ["toy"]}, "dataset_ids", '["toy"]', "unknown key; remove it: the ids stand in datasets"),
    ({"use_tpu": True}, "use_tpu", "true", "devices come from --gpu_ids"),
    ({"tokenizer_path": "t"}, "tokenizer_path", '"t"', "it belongs in the dataset config, move it there"),
    ({"activation_function": "gellu"}, "activation_function", '"gellu"', "did you mean gelu?"),
    ({"activation_function": "softpluss"}, "activation_function", '"softpluss"', "did you mean softplus?"),
    ({"moe_activation": "rellu"}, "moe_activation", '"rellu"', "did you mean relu?"),
    ({"opt_name": "adamw"}, "opt_name", '"adamw"', "use one of adam, adafactor; did you mean adam?"),
    ({"lr_decay": "cosin"}, "lr_decay", '"cosin"', "did you mean cosine?"),
    ({"precision": "bf16"}, "precision", '"bf16"', "use one of float32, bfloat16"),
    ({"model": "GTP"}, "model", '"GTP"', "use GPT"),
    ({"eval_tasks": ["lambda"]}, "eval_tasks", '["lambda"]', "did you mean lambada?"),
    ({"moe_params": {"moe_experts": 4}}, "moe_params", '{"moe_experts": 4}', "did you mean moe_num_experts?"),
]
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 8, "low_freq_factor": 1}
TYPES = [
    ({"n_ctx": True}, "n_ctx", "true", "must be an integer"),
    ({"n_ctx": "16"}, "n_ctx", '"16"', "must be an integer"),
    ({"n_ctx": 16.5}, "n_ctx", "16.5", "must be an integer"),
    ({"n_ctx": None}, "n_ctx", "", "must be an integer"),
    ({"n_ctx": float("inf")}, "n_ctx", "Infinity", "must be an integer"),
    ({"n_ctx": 10**30}, "n_ctx", str(10**30), "at most 64 bits"),
    ({"lr": "0.1"}, "lr", '"0.1"', "must be a number"),
    ({"lr": True}, "lr", "true", "must be a number"),
    ({"lr": float("nan")}, "lr", "NaN", "must be a finite number"),
    ({"lr": 10**400}, "lr", "1000", "must be a finite number"),
    ({"ada_epsilon1": "small"}, "ada_epsilon1", '"small"', "must be a number"),
    ({"scale_by_depth": 1}, "scale_by_depth", "1", "must be true or false"),
    ({"rezero": "true"}, "rezero", '"true"', "must be true or false"),
    ({"model_path": 3}, "model_path", "3", "must be a string"),
    ({"model_path": ""}, "model_path", '""', "must not be empty"),
    ({"model_path": "s3://bucket/run"}, "model_path", '"s3://bucket/run"', "must be a local path, or one in gs://"),
    ({"moe_layers": 1}, "moe_layers", "1", "must be a list"),
    ({"moe_layers": ["1"]}, "moe_layers", '["1"]', 'element "1" cannot work: must be an integer'),
    ({"moe_params": []}, "moe_params", "[]", "must be an object"),
    ({"moe_params": {"moe_dropout_rate": 1}}, "moe_params", '{"moe_dropout_rate": 1}', "must be in [0, 1)"),
    ({"rope_scaling": 2}, "rope_scaling", "2", "} or null"),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling", '{"rope_type": "linear"}', "factor is missing in it"),
    (
        {"rope_scaling": {"rope_type": "ntk", "factor": 2}},
        "rope_scaling",
        '{"rope_type": "ntk", "factor": 2}',
        'the rope_type "ntk" cannot work: unknown name; use one of linear, dynamic, llama3, yarn',
    ),
    ({"rope_scaling": LINEAR | {"factr": 1}}, "rope_scaling", '{"rope_type": ', "did you mean factor?"),
    ({"mesh_shape": ["x"]}, "mesh_shape", '["x"]', 'must be a string such as "x:4,y:2"'),
    ({"layout": 1}, "layout", "1", 'must be a string such as "batch:x,heads:y"'),
    ({"axial_pos_emb": 16}, "axial_pos_emb", "16", "must be a pair [d1, d2]"),
]
RANGES = [
    ({"n_ctx": 1}, "n_ctx", "1", "must be >= 2"),
    *[
        ({name: 0}, name, "0", "must be >= 1")
        for name in ("n_head", "n_embd", "n_vocab", "train_steps", "train_batch_size", "eval_batch_size",
                     "predict_batch_size", "iterations", "local_attention_radius", "lr_decay_end")
    ],
    *[
        ({name: value}, name, str(value), "must be in [0, 1)")
        for name in ("embed_dropout", "attn_dropout", "res_dropout", "beta1", "beta2")
        for value in (1, -0.1)
    ],
    *[
        ({name: -1}, name, "-1", "must be >= 0")
        for name in ("warmup_steps", "eval_steps", "predict_steps", "num_mem_kv", "weight_decay", "z_loss")
    ],
    ({"n_layer": 0}, "n_layer", "0", "must be in [1, 10000]"),
    ({"lr": 0}, "lr", "0", "must be > 0"),
    ({"gradient_clipping": 0}, "gradient_clipping", "0", "must be > 0 or null"),
    ({"tokens_per_mb_per_replica": 0}, "tokens_per_mb_per_replica", "0", "must be >= 1 or null"),
    ({"seed": 2**31}, "seed", str(2**31), "must be in [0, 2147483647]"),
    ({"mlm_mask_prob": 0}, "mlm_mask_prob", "0", "must be in (0, 1]"),
    ({"moe_layers": [-1]}, "moe_layers", "[-1]", "must be >= 0"),
    ({"predict_max_steps": 16}, "predict_max_steps", "16", "must be less than n_ctx = 16"),
]  # fmt: skip
COMBINATIONS = [
    *[
        ({"rotary_emb": True, "rope_scaling": scaling}, "rope_scaling", '{"rope_type": "', words)
        for scaling, words in (
            (LLAMA3, "rope_type llama3 needs high_freq_factor; add it"),
            (LLAMA3 | {"high_freq_factor": 1}, "low_freq_factor = 1.0 must be less than high_freq_factor = 1.0"),
            (LINEAR | {"beta_fast": 16}, "rope_type linear has no beta_fast; remove it"),
            (LINEAR | {"rope_type": "yarn", "beta_slow": 33}, "must not be more than beta_fast = 32.0"),
        )
    ],
    ({"n_embd": 30}, "n_embd", "30", "not divisible by n_head = 4; make n_embd a multiple of n_head"),
    ({"n_embd": 30}, "n_embd", "30", "or set head_dim"),
    ({"num_kv_heads": 3}, "num_kv_heads", "3", "must divide n_head = 4; use one of 1, 2, 4"),
    ({"num_kv_heads": 8}, "num_kv_heads", "8", "must divide n_head = 4; use one of 1, 2, 4"),
    ({"rotary_emb": True, "head_dim": 7}, "rotary_emb", "true", "needs an even head size, but head_dim = 7"),
    (
        {"use_bias_in_attn_linear": True, "use_bias_in_qkv": False},
        "use_bias_in_qkv",
        "false",
        "contradicts use_bias_in_attn_linear = true",
    ),
    ({"n_positions": 17}, "n_positions", "17", "must equal n_ctx = 16"),
    (
        {"axial_pos_emb": [3, 5]},
        "axial_pos_emb",
        "[3, 5]",
        "the product is 15; choose two sizes with product n_ctx = 16",
    ),
    ({"axial_pos_emb": [0, 5]}, "axial_pos_emb", "[0, 5]", "the size 0 cannot work: must be >= 1"),
    ({"rotary_emb": True, "axial_pos_emb": [4, 4]}, "rotary_emb", "true", "choose one position embedding"),
    ({"rotary_emb": True, "n_embd": 36}, "rotary_emb", "true", "needs an even head size, but head_dim = 9"),
    ({"pos_emb": "rotary", "n_embd": 36}, "pos_emb", '"rotary"', "needs an even head size, but head_dim = 9"),
    ({"rotary_emb": True, "pos_emb": "alibi"}, "pos_emb", '"alibi"', "cannot be combined with rotary_emb"),
    ({"axial_pos_emb": [4, 4], "pos_emb": "none"}, "pos_emb", '"none"', "cannot be combined with axial_pos_emb"),
    ({"pos_emb": "axial"}, "pos_emb", '"axial"', "needs axial_pos_emb; add it"),
    (
        {"pos_emb": "alibi", "attention_types": [[["linear"], 2]]},
        "pos_emb",
        '"alibi"',
        "linear attention has no logits to add a bias to; use global or local attention",
    ),
    ({"rotary_pct": 0.5}, "rotary_pct", "0.5", 'pos_emb = "learned" has none; remove it, or set pos_emb to "rotary"'),
    ({"rotary_emb_base": 500, "pos_emb": "none"}, "rotary_emb_base", "500", 'pos_emb = "none" has none'),
    ({"rotary_interleaved": True}, "rotary_interleaved", "true", "remove it"),
    ({"rope_scaling": LINEAR}, "rope_scaling", '{"rope_type": "linear", "factor": 2.0}', 'set pos_emb to "rotary"'),
    (
        {"rotary_emb": True, "rotary_pct": 0.3, "n_embd": 40},
        "rotary_pct",
        "0.3",
        "3 of the 10 features of a head would rotate; choose a share that gives an even number",
    ),
    (
        {"rotary_emb": True, "rotary_pct": 0.25, "rope_scaling": {"rope_type": "dynamic", "factor": 2}},
        "rope_scaling",
        '{"rope_type": "dynamic", "factor": 2.0}',
        "dynamic needs 4 rotating features or more",
    ),
    ({"scalenorm": True, "rezero": True}, "scalenorm", "true", "cannot be combined with rezero"),
    ({"scalenorm": True, "norm": "rmsnorm"}, "norm", '"rmsnorm"', "contradicts scalenorm = true; remove one"),
    ({"norm": "rms"}, "norm", '"rms"', "did you mean rmsnorm?"),
    ({"rezero": True, "norm_placement": "both"}, "norm_placement", '"both"', "rezero replaces the norms of blocks"),
    ({"embed_norm": True, "norm": "none"}, "embed_norm", "true", "choose a norm or remove this"),
    ({"gpt_j_tied": True}, "gpt_j_tied", "true", "needs gpt_j_residual"),
    ({"gpt_j_residual": True, "gpt_j_tied": True, "norm": "none"}, "gpt_j_tied", "true", "no norm comes before"),
    ({"gpt_j_residual": True, "gpt_j_tied": True, "rezero": True}, "gpt_j_tied", "true", "no norm comes before"),
    ({"intermediate_size": 0}, "intermediate_size", "0", "must be >= 1"),
    ({"final_logit_softcapping": 0}, "final_logit_softcapping", "0", "must be > 0"),
    ({"moe_layers": [2]}, "moe_layers", "[2]", "layer 2 does not exist; use layers from 0 to 1"),
    ({"moe_layers": [1, 1]}, "moe_layers", "[1, 1]", "list each once"),
    ({"moe_layers": [1], "share_parameters": True}, "moe_layers", "[1]", "list every layer or none"),
    ({"activation_function": "gelu", "activation_fn": "relu"}, "activation_fn", '"relu"', "given too; remove one"),
    ({"mlm_training": True}, "mlm_mask_id", "", "required with mlm_training; give the id of the mask token"),
    ({"mlm_mask_id": 100}, "mlm_mask_id", "100", "ids must be less than n_vocab = 100"),
    ({"mlm_cls_token_id": 200}, "mlm_cls_token_id", "200", "ids must be less than n_vocab = 100"),
    ({"mlm_mask_ignore_ids": [1, 100]}, "mlm_mask_ignore_ids", "[1, 100]", "ids must be less than n_vocab = 100"),
    (
        {"mlm_training": True, "mlm_mask_id": 3, "mlm_cls_token_id": 3},
        "mlm_cls_token_id",
        "3",
        "is mlm_mask_id too; give each an id of its own",
    ),
    (
        {"mlm_training": True, "mlm_mask_id": 99, "mlm_mask_ignore_ids": list(range(99))},
        "mlm_mask_ignore_ids",
        "[0, 1, 2",
        "these are all ids of the vocabulary; leave some to be learned",
    ),
    ({"epsilon": 1e-46}, "epsilon", "1e-46", "must be >= 1.2e-38"),
    ({"ada_epsilon1": 1e-46}, "ada_epsilon1", "1e-46", "must be >= 1.2e-38"),
    ({"mlm_same_token_prob": 0.6, "mlm_random_token_prob": 0.5}, "mlm_random_token_prob", "0.5", "the sum exceeds 1"),
    ({"eos_id": 90}, "eos_id", "90", "must be less than the dataset's n_vocab = 90"),
]
ATTENTION = [
    ([[["global"], 3]], "describes 3 layers but n_layer = 2; make the two equal"),
    ([[["globl"], 2]], 'unknown attention type "globl"; use one of global, local, linear, none; did you mean global?'),
    ([[["global"], 10**9]], "describes more than 10000 layers"),
    ([[["global"], 0]], "number of repeats 0 cannot work: must be >= 1"),
    ([["global", 2]], "must be a list of [list of types, repeats] pairs"),
    ([[[], 2]], "must be a list of [list of types, repeats] pairs"),
    ([[[1], 2]], "must be a list of [list of types, repeats] pairs"),
    (["global", "global"], "must be a list of [list of types, repeats] pairs"),
    ([], "must be a list of [list of types, repeats] pairs"),
]
MESHES = [
    ({"mesh_shape": "x4"}, "mesh_shape", '"x4"', 'cannot read "x4"; write it as "x:4,y:2"'),
    ({"mesh_shape": "x:0"}, "mesh_shape", '"x:0"', "size of mesh dimension x must be a whole number >= 1"),
    ({"mesh_shape": "x:y"}, "mesh_shape", '"x:y"', "size of mesh dimension x must be a whole number >= 1"),
    ({"mesh_shape": "x:2,x:2"}, "mesh_shape", '"x:2,x:2"', "names x twice"),
    ({"mesh_shape": "x:2", "layout": "batch=x"}, "layout", '"batch=x"', 'write it as "batch:x,heads:y"'),
    ({"mesh_shape": "x:2", "layout": "batch:x,batch:x"}, "layout", '"batch:x,batch:x"', "names batch twice"),
    ({"mesh_shape": "x:2", "layout": "head:x"}, "layout", '"head:x"', "unknown tensor dimension head; use one of"),
    ({"mesh_shape": "x:2", "layout": "head:x"}, "layout", '"head:x"', "did you mean heads?"),
    ({"mesh_shape": "x:2", "layout": "batch:y"}, "layout", '"batch:y"', 'correct the layout, to "batch:x"'),
    ({"layout": "batch:x"}, "layout", '"batch:x"', 'which mesh_shape = "" does not have'),
]
DATASETS = [
    ([], "[]", "must be a list such as"),
    ("toy", '"toy"', "must be a list such as"),
    (["toy", 25, "chunks", 1.0], '["toy", 25, "chunks", 1.0]', 'must be a list such as [["my_dataset", 25,'),
    ([["toy", 0]], '[["toy", 0]]', "the stitch 0 cannot work: must be >= 1"),
    ([["toy", 1, "chunk"]], '[["toy", 1, "chunk"]]', "did you mean chunks?"),
    ([["toy", 1, "chunks", 0]], '[["toy", 1, "chunks", 0]]', "the weight 0 cannot work: must be > 0"),
    ([["toy", 1, "chunks", -1]], '[["toy", 1, "chunks", -1]]', "the weight -1 cannot work: must be > 0"),
    ([["toy", 1, "chunks", 1, 1]], '[["toy", 1, "chunks", 1, 1]]', "must be a list such as"),
    (["toi"], '"toi"', "did you mean toy?"),
    (["../toy"], '"../toy"', "create it or use one of the ids that exist"),
]
REFUSALS = [
    *NEAREST,
    *TYPES,
    *RANGES,
    *COMBINATIONS,
    *MESHES,
    *[({"attention_types": value}, "attention_types", "[", words) for value, words in ATTENTION],
    *[({"datasets": value}, "datasets", shown, words) for value, shown, words in DATASETS],
]


@pytest.mark.parametrize(("changes", "name", "shown", "words"), REFUSALS)
def test_refuses(directory: Path, changes: dict[str, Any], name: str, shown: str, words: str) -> None:
    message = refusal(directory, changes)
    given = f" = {shown}" if shown else ""
    assert message.startswith(f"model.json: {name}{given}")
    assert words in message


@pytest.mark.parametrize("name", [name for name in TOY if name != "n_layer"])
def test_refuses_missing(directory: Path, name: str) -> None:
    values = {key: value for key, value in TOY.items() if key not in (name, "n_layer")}
    with pytest.raises(InputError) as caught:
        parse_config(values, "model.json", directory)
    message = str(caught.value)
    assert message.startswith("model.json: ")
    assert "required but missing; add " in message
    assert name in message and "n_layer" in message


def test_missing_dataset_names_places_and_ids(directory: Path) -> None:
    message = refusal(directory, {"datasets": ["nowhere"]})
    assert str(directory / "dataset_configs") in message
    assert "configs/dataset_configs" in message
    assert "toy" in message and "pile" in message


def test_model_vocabulary_covers_the_dataset(directory: Path) -> None:
    message = refusal(directory, {"n_vocab": 89})
    assert message.startswith("model.json: n_vocab = 89: less than n_vocab = 90 of ")
    assert "toy.json; raise it to at least 90" in message


@pytest.mark.parametrize(
    ("values", "name", "words"),
    [
        ({"n_vocab": 90}, "path", "required but missing; add path"),
        ({"path": "x"}, "n_vocab", "required but missing; add n_vocab"),
        ({**TOY_DATASET, "path": ""}, "path", "must name at least one file or glob"),
        ({**TOY_DATASET, "path": [1]}, "path", "must be a path or glob, or a list of them"),
        ({**TOY_DATASET, "tokeniser_path": "t"}, "tokeniser_path", "did you mean tokenizer_path?"),
        ({**TOY_DATASET, "n_ctx": 4}, "n_ctx", "it belongs in the model config, move it there"),
        ({**TOY_DATASET, "tokenizer_is_pretrained": True}, "tokenizer_is_pretrained", "needs tokenizer_path"),
        ({**TOY_DATASET, "eos_id": 90}, "eos_id", "must be less than the dataset's n_vocab = 90"),
        ({**TOY_DATASET, "padding_id": -1}, "padding_id", "must be >= 0 or null"),
        ({**TOY_DATASET, "source": "x"}, "source", "unknown key"),
    ],
)
def test_refuses_dataset_configs(own_directory: Path, values: dict[str, Any], name: str, words: str) -> None:
    write_dataset(own_directory, values)
    message = refusal(own_directory, {})
    assert message.startswith(f"{own_directory / 'dataset_configs' / 'toy.json'}: {name}")
    assert words in message


@pytest.mark.parametrize("value", [[], None, 3, "text"])
def test_refuses_what_is_no_object(own_directory: Path, value: Any) -> None:
    write_dataset(own_directory, value)
    assert "must hold one JSON object" in refusal(own_directory, {})
    path = own_directory / "model.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"model\.json: must hold one JSON object"):
        load_config(str(path))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"n_ctx": 16,\n "n_head" 4}', "not valid JSON at line 2, column 11"),
        (b"", "not valid JSON at line 1, column 1"),
        (b'{"n_ctx": 16, "lr": 1, "n_ctx": 32}', "n_ctx = 32: given twice (first 16); remove one"),
        (b'{"moe_params": {"a": 1, "a": 2}}', "a = 2: given twice (first 1); remove one"),
        (b'{"lr": NaN}', "NaN is not JSON; write a finite number"),
        (b'{"lr": -Infinity}', "-Infinity is not JSON"),
        (b'{"lr": "\xff"}', "write JSON as UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"n_ctx": ' + b"9" * 10_000 + b"}", "has 10000 digits; write a smaller number"),
    ],
    ids=range(9),
)
def test_refuses_files(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(text)
    with pytest.raises(InputError) as caught:
        load_config(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message


def test_reads_a_byte_order_mark(own_directory: Path) -> None:
    path = own_directory / "model.json"
    path.write_text(json.dumps(TOY), encoding="utf-8-sig")
    assert load_config(str(path)).model.n_ctx == 16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2_smal", "did you mean gpt2_small?"),
        ("zzzz", "shipped configs: "),
        ("nowhere/gpt2_small.json", "no such model config"),
        ("x" * 5000 + ".json", "no such model config"),
        ("a\0b", "no such model config"),
        ("a\nb", "no such model config"),
    ],
)
def test_refuses_unknown_names(name: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_files_from_the_root(own_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_directory.parent)
    (own_directory / "bad.json").write_text(json.dumps({**TOY, "n_ctx": 0}))
    with pytest.raises(InputError, match=rf"^{re.escape(str(own_directory))}/bad\.json: n_ctx = 0: must be >= 2$"):
        load_config(f"{own_directory.name}/bad.json")


def test_dataset_beside_the_model_config_wins(own_directory: Path) -> None:
    write_dataset(own_directory, {**TOY_DATASET, "n_vocab": 11}, name="pile")
    assert parse(own_directory, {"datasets": ["pile"]}).data.datasets[0].dataset.n_vocab == 11


def test_sizes_have_31_bits() -> None:
    for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "train_batch_size", "eval_batch_size", "predict_batch_size"):
        with pytest.raises(InputError, match=f"{name} = {2**40}: must be at most {2**31 - 1}$"):
            parse_config({**TOY, name: 2**40}, "model.json")
    with pytest.raises(InputError, match="the stitch 2147483648 cannot work: must be at most"):
        parse_config({**TOY, "datasets": [["toy", 2**31]]}, "model.json")


def test_seeds_have_64_bits() -> None:
    for seed in (-(2**63), 2**63 - 1):
        assert generation_settings({"seed": seed}, "x").seed == seed
    for seed in (-(2**63) - 1, 2**63):
        with pytest.raises(InputError, match="at most 64 bits"):
            generation_settings({"seed": seed}, "x")


def test_names_are_looked_up_in_the_working_directory_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("laptop").source == str(CONFIG_DIRECTORY / "laptop.json")
    own = tmp_path / "configs"
    (own / "dataset_configs").mkdir(parents=True)
    values = json.loads((CONFIG_DIRECTORY / "laptop.json").read_text())
    (own / "laptop.json").write_text(json.dumps({**values, "datasets": ["mine"], "eval_steps": 0}))
    (own / "dataset_configs" / "mine.json").write_text(json.dumps({"path": "x", "n_vocab": values["n_vocab"]}))
    found = load_config("laptop")
    assert found.source == str(own / "laptop.json")
    assert found.data.datasets[0].dataset.source == str(own / "dataset_configs" / "mine.json")
    assert load_config("demo").source == str(CONFIG_DIRECTORY / "demo.json")
    # A config elsewhere finds the working directory's datasets too.
    elsewhere = tmp_path / "elsewhere" / "model.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text((own / "laptop.json").read_text())
    assert load_config(str(elsewhere)).data.datasets[0].dataset.source == str(own / "dataset_configs" / "mine.json")
    message = rf"^{tmp_path}/configs/laptob.json: no such model config; .*did you mean laptop\?"
    with pytest.raises(InputError, match=message):
        load_config("laptob")


def test_data_files_are_found_from_the_working_directory_then_beside(own_directory: Path) -> None:
    beside = own_directory / "dataset_configs"
    (use,) = parse(own_directory).data.datasets
    with pytest.raises(InputError) as caught:
        use.dataset.files("path")
    assert str(caught.value).startswith(f'{beside / "toy.json"}: path = "train_*.tfrecords": matches no file')

    for name in ("train_1.tfrecords", "train_0.tfrecords", "train_0.tfrecords.index", "other"):
        (beside / name).touch()
    assert use.dataset.files() == [str(beside / "train_0.tfrecords"), str(beside / "train_1.tfrecords")]
    Path("train_7.tfrecords").touch()
    assert use.dataset.files() == ["train_7.tfrecords"]
    Path("train_8.index").touch()
    assert use.dataset.glob("train_*") == ["train_7.tfrecords"]


def test_several_globs_give_each_file_once(own_directory: Path) -> None:
    for name in ("a_1", "a_2", "b_1"):
        Path(name).touch()
    write_dataset(own_directory, {**TOY_DATASET, "path": ["a_*", "*_1"], "eval_path": ""})
    dataset = parse(own_directory).data.datasets[0].dataset
    assert dataset.files() == ["a_1", "a_2", "b_1"]
    assert dataset.eval_path == ()
    with pytest.raises(InputError, match=r"no files are given; name .* held-out text, or set eval_steps = 0"):
        dataset.files("eval_path")


def test_resolve(own_directory: Path) -> None:
    dataset = parse(own_directory).data.datasets[0].dataset
    assert dataset.resolve("gpt2") == "gpt2"
    assert dataset.resolve("gs://bucket/tokenizer.json") == "gs://bucket/tokenizer.json"
    (own_directory / "dataset_configs" / "tokenizer.json").touch()
    assert dataset.resolve("tokenizer.json") == str(own_directory / "dataset_configs" / "tokenizer.json")
    Path("tokenizer.json").touch()
    assert dataset.resolve("tokenizer.json") == "tokenizer.json"


# --- to_json and replace ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"eval_tasks": ["wikitext"]}, {"eos_id": 3}])
def test_round_trip(directory: Path, changes: dict[str, Any]) -> None:
    parsed = parse(directory, changes)
    flat = json.loads(json.dumps(parsed.to_json()))
    assert parse_config(flat, "model.json", directory) == parsed
    assert set(flat) == {name for group in GROUPS.values() for name in keys(group)}


def test_attention_types_are_written_short(directory: Path) -> None:
    parsed = parse(directory, {"n_layer": 6, "attention_types": [[["global", "local"], 2], [["global", "local"], 1]]})
    assert parsed.to_json()["attention_types"] == [[["global", "local"], 3]]


def test_replace_changes_and_checks(directory: Path) -> None:
    toy = parse(directory)
    longer = replace(toy, train_steps=70, n_ctx=32, n_layer=3)
    assert longer.training.train_steps == longer.optimizer.lr_decay_end == 70
    assert longer.model.n_positions == 32
    assert longer.model.attention_types == ("global",) * 3
    assert longer.data == toy.data
    assert replace(toy) == toy
    assert toy.training.train_steps == 50
    with pytest.raises(InputError, match=r"^model\.json: n_head = 0: must be >= 1$"):
        replace(toy, n_head=0)
    with pytest.raises(InputError, match="did you mean n_head"):
        replace(toy, n_haed=2)


def test_replace_keeps_what_was_set_apart(directory: Path) -> None:
    toy = parse(directory, {"lr_decay_end": 20, "eval_batch_size": 2})
    changed = replace(toy, train_steps=70, train_batch_size=4)
    assert (changed.optimizer.lr_decay_end, changed.training.eval_batch_size) == (20, 2)


# --- shipped configs -------------------------------------------------------------------------------------------------

SMALL_LAYOUT = "batch:x,heads:y,vocab:y,intermediate_expanded:y"
# name: layers, embd, heads, vocab, lr, weight decay, batch, steps, mesh, layout, keys that differ from the common ones
TABLE: dict[str, tuple[Any, ...]] = {
    "gpt2_small": (12, 768, 12, 50257, 6e-4, 0, 512, 1_000_000, "all:64", "batch:all"),
    "gpt3_small_256": (12, 768, 12, 50304, 6e-4, 0.1, 256, 572_300, "x:64,y:4", SMALL_LAYOUT),
    "gpt3_PAR_small_256": (19, 768, 12, 50304, 6e-4, 0.1, 256, 572_300, "x:64,y:4", SMALL_LAYOUT),
    "gpt3_medium_256": (24, 1024, 16, 50304, 3e-4, 0.1, 256, 572_300, "x:64,y:4", "batch:x,heads:y,vocab:y"),
    "gpt3_large_256": (24, 1536, 16, 50304, 2.5e-4, 0.1, 256, 572_300, "x:64,y:4", "batch:x,vocab:y,heads:y"),
    "gpt3_XL_256_Pile": (24, 2048, 32, 50257, 2e-4, 0.1, 512, 286_150, "x:128,y:2", "batch:x,memory_length:y,embd:y"),
    "gpt3_2-7B_256": (32, 2560, 32, 50257, 1.6e-4, 0.1, 512, 286_150, "x:128,y:2", "embd:y,batch:x"),
    "gpt3_6-7B_256": (32, 4096, 32, 50257, 1.2e-4, 0.1, 1024, 143_075, "x:128,y:2", "embd:y,batch:x"),
    "gpt3_13B_256": (40, 5120, 40, 50257, 1e-4, 0.1, 1024, 143_075, "x:16,y:16", "batch:x,embd:y,memory_length:y"),
    "gpt3_13B_256_Pile": (40, 5120, 40, 50257, 1e-4, 0.1, 1024, 286_150, "x:16,y:16", "batch:x,memory_length:y,embd:y"),
}
RECOMPUTES = (
    "gpt3_large_256",
    "gpt3_XL_256_Pile",
    "gpt3_2-7B_256",
    "gpt3_6-7B_256",
    "gpt3_13B_256",
    "gpt3_13B_256_Pile",
)
MICROBATCHES = ("gpt3_large_256", "gpt3_XL_256_Pile", "gpt3_13B_256", "gpt3_13B_256_Pile")
HALF_PRECISION = ("gpt3_XL_256_Pile", "gpt3_13B_256", "gpt3_13B_256_Pile")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_parse(name: str) -> None:
    parsed = load_config(name)
    assert parse_config(parsed.to_json(), parsed.source, parsed.directory) == parsed
    assert parsed.training.model_path == f"runs/{name}"


@pytest.mark.parametrize("name", TABLE)
def test_shipped_configs_are_the_published_ones(name: str) -> None:
    parsed = load_config(name)
    model, optimizer, training, mesh = parsed.model, parsed.optimizer, parsed.training, parsed.mesh
    assert (
        model.n_layer, model.n_embd, model.n_head, model.n_vocab, optimizer.lr, optimizer.weight_decay,
        training.train_batch_size, training.train_steps, mesh.mesh_shape, mesh.layout,
    ) == TABLE[name]  # fmt: skip
    assert (optimizer.opt_name, optimizer.beta1, optimizer.beta2, optimizer.epsilon) == ("adam", 0.9, 0.95, 1e-8)
    assert (optimizer.lr_decay, optimizer.warmup_steps, optimizer.gradient_clipping) == ("cosine", 3000, 1.0)
    assert (model.activation_function, model.scale_by_depth, model.scale_by_in) == ("gelu", True, False)
    small = name == "gpt2_small"
    assert model.n_ctx == (1024 if small else 2048)
    assert {model.embed_dropout, model.attn_dropout, model.res_dropout} == {0.1 if small else 0.0}
    assert optimizer.lr_decay_end == (300_000 if small else training.train_steps)
    assert training.recompute_grad == (name in RECOMPUTES)
    assert training.tokens_per_mb_per_replica == (2048 if name in MICROBATCHES else None)
    assert training.precision == ("bfloat16" if name in HALF_PRECISION else "float32")


@pytest.mark.parametrize(
    ("name", "layers", "embd", "heads"),
    [("gpt_neo_125M", 12, 768, 12), ("gpt_neo_1-3B", 24, 2048, 16), ("gpt_neo_2-7B", 32, 2560, 20)],
)
def test_published_checkpoints_have_configs_for_one_device(name: str, layers: int, embd: int, heads: int) -> None:
    parsed = load_config(name)
    assert (parsed.model.n_layer, parsed.model.n_embd, parsed.model.n_head) == (layers, embd, heads)
    assert parsed.model.attention_types == ("global", "local") * (layers // 2)
    assert parsed.mesh.size == 1


def test_small_configs_run_now() -> None:
    for name in ("laptop", "single_gpu"):
        assert load_config(name).mesh.size == 1


def test_a_run_may_lie_in_the_home_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse(directory, {"model_path": "~/runs/mine"}).training.model_path == "/home/someone/runs/mine"


# --- documents and source --------------------------------------------------------------------------------------------


def test_reference_page_is_current() -> None:
    assert (ROOT / "docs" / "parameters.md").read_text() == reference_page(), "run `make docs`"


def test_reference_page_names_every_key() -> None:
    page = reference_page()
    for group in (*GROUPS.values(), config.DatasetConfig, config.MoeParams, config.RopeScaling):
        for name, declared in keys(group).items():
            assert f"| `{name}` |" in page
            assert declared.doc.endswith((".", ")")), name


def test_activations_are_the_43_and_the_exact_gelu() -> None:
    assert len(config.ACTIVATIONS) == len(set(config.ACTIVATIONS)) == 44


def test_imports_no_tensorflow() -> None:
    script = (
        "import sys; from gpt_mesh.config import load_config; load_config('laptop')\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def undeclared(source: str) -> Iterator[str]:
    """Every `config.<group>.<key>` or `cfg.<group>.<key>` in Python source whose key is not declared."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Attribute):
            continue
        owner, group = node.value.value, node.value.attr
        owner_name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        if owner_name not in ("config", "cfg") or group not in GROUPS:
            continue
        if node.attr not in GROUPS[group].model_fields and not hasattr(GROUPS[group], node.attr):
            yield f"line {node.lineno}: {group}.{node.attr}"


def test_undeclared_keys_are_seen() -> None:
    source = "config.model.n_heads\nself.cfg.training.train_steps\ncfg.mesh.sizes\nconfig.model.head_dim\n"
    assert list(undeclared(source)) == ["line 1: model.n_heads", "line 3: mesh.sizes"]


def project_sources() -> list[Path]:
    """The project's Python files, without tests, environments and build output."""
    skipped = {"tests", "build", "dist"}
    rooms = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in skipped and path.name[0] != "."]
    return sorted([*ROOT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))])


def test_source_reads_only_declared_keys() -> None:
    sources = project_sources()
    assert ROOT / "config" / "parsing.py" in sources
    found = {str(path.relative_to(ROOT)): list(undeclared(path.read_text())) for path in sources}
    assert not {path: keys for path, keys in found.items() if keys}


def test_schema_is_current() -> None:
    assert json.loads((config.CONFIG_DIRECTORY / "schema.json").read_text()) == json_schema(), "run `make docs`"


@pytest.mark.parametrize("name", SHIPPED)
def test_schema_accepts_shipped_configs(name: str) -> None:
    values = json.loads((config.CONFIG_DIRECTORY / f"{name}.json").read_text())
    SCHEMA.validate(values)
    SCHEMA.validate(load_config(name).to_json())


def test_schema_describes_every_key() -> None:
    schema = json_schema()
    properties = schema["properties"]
    inner_groups = config.MoeParams, config.RopeScaling, config.GenerationSettings
    groups: list[type[config.Group]] = [*GROUPS.values(), *inner_groups]
    for group in groups:
        inner = schema["$defs"].get(group.__name__, {"properties": properties})["properties"]
        for name, declared in keys(group).items():
            assert inner[name]["description"].startswith(declared.doc), name
    assert {*properties} == {name for group in GROUPS.values() for name in keys(group)} | {
        "$schema", "base", *config.ALIASES,
    }  # fmt: skip
    assert {*schema["then"]["required"]} == {*TOY}
    assert properties["n_ctx"] == {"type": "integer", "minimum": 2, "description": "Context length. Unit: tokens."}


def test_schema_is_no_config() -> None:
    assert "schema" not in SHIPPED
    with pytest.raises(InputError, match="no such model config"):
        load_config("schema")


def test_a_config_may_name_its_schema(directory: Path) -> None:
    assert parse(directory, {"$schema": "schema.json"}) == parse(directory)
    SCHEMA.validate({**TOY, "$schema": "schema.json"})


# What a schema cannot see: checks across keys, a text that is no number, numbers that JSON does not have, other files.
ELSEWHERE = ({"datasets": ["toi"]}, {"datasets": ["../toy"]})
ACROSS = [*COMBINATIONS, *MESHES, *[row for row in REFUSALS if row[0] in ELSEWHERE]]
WORDS_ACROSS = ("layers", "less than n_ctx", "finite", "64 bits")
IN_SCHEMA = [
    row[0] for row in REFUSALS
    if row not in ACROSS and row[0] != {"ada_epsilon1": "small"} and not any(words in row[3] for words in WORDS_ACROSS)
]  # fmt: skip


@pytest.mark.parametrize("changes", IN_SCHEMA)
def test_schema_refuses_what_one_key_shows(changes: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid({**TOY, **changes}), changes


# --- anything at all -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(sorted({*(name for group in GROUPS.values() for name in keys(group)), *config.ALIASES}))
LIKELY = st.sampled_from(
    [0, 1, 2, 16, -1, 0.5, 1e3, "x:2", "batch:x", "adam", [["toy", 1]], [[["local"], 2]], [4, 4], True]
)


def assert_parses_or_refuses(directory: Path, values: Any) -> None:
    try:
        parsed = parse_config(values, "model.json", directory)
    except InputError as error:
        assert "\n" not in str(error)
        str(error).encode("utf-8")
    else:
        assert parse_config(parsed.to_json(), "model.json", directory) == parsed


@settings(deadline=None, max_examples=200)
@given(changes=st.dictionaries(KEYS | st.text(st.characters(), max_size=12), JSON | LIKELY, max_size=3))
def test_junk_values_are_refused_in_one_line(directory: Path, changes: dict[str, Any]) -> None:
    assert_parses_or_refuses(directory, {**TOY, **changes})


@settings(deadline=None, max_examples=50)
@given(values=JSON)
def test_junk_configs_are_refused_in_one_line(directory: Path, values: Any) -> None:
    assert_parses_or_refuses(directory, values)


@settings(deadline=None, max_examples=50)
@given(content=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_junk_files_are_refused_in_one_line(directory: Path, content: bytes) -> None:
    path = directory / "junk.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)
