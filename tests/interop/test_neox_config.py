"""Configs of GPT-NeoX, as its repository's are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.config import ModelConfig, OptimizerConfig, TrainingConfig, keys
from gpt_mesh.errors import InputError
from gpt_mesh.interop.neox_config import convert, read
from gpt_mesh.interop.neox_unused import UNUSED
from tests.support.runs import REPOSITORY

# In the form of GPT-NeoX's own: YAML with comments, hyphens and a trailing comma, over two files.
PYTHIA = """{
  # parallelism settings
  "pipe-parallel-size": 1,
  "model-parallel-size": 2,

  "num-layers": 6, "hidden-size": 512, "num-attention-heads": 8, "seq-length": 2048,
  "max-position-embeddings": 2048, "pos-emb": "rotary", "rotary-pct": 0.25, "no-weight-tying": true,
  "gpt-j-residual": true, "output-layer-parallelism": "column",
  "attention-config": [[["flash"], 6]],
  "scaled-upper-triang-masked-softmax-fusion": true, "bias-gelu-fusion": true,
  "init_method": "small_init", "output_layer_init_method": "wang_init",

  "optimizer": {"type": "Adam", "params": {"lr": 0.001, "betas": [0.9, 0.95], "eps": 1.0e-8}},
  "min_lr": 0.0001,
  "zero_optimization": {"stage": 1, "allgather_bucket_size": 500000000},
  "train_micro_batch_size_per_gpu": 32, "gas": 1, "data-impl": "mmap", "num_workers": 1,
  "checkpoint-activations": true, "gradient_clipping": 1.0, "weight-decay": 0.1,
  "hidden-dropout": 0, "attention-dropout": 0, "fp16": {"fp16": true, "enabled": true, "loss_scale": 0},
  "train-iters": 143000, "lr-decay-iters": 143000, "lr-decay-style": "cosine", "warmup": 0.01,
  "checkpoint-factor": 1000, "eval-interval": 40000, "eval-iters": 10, "log-interval": 10,
}"""
LOCAL = 'data-path: "data/enwik8_text_document"\nvocab-file: null\nsave: checkpoints\n'


def write(folder: Path, text: str = PYTHIA, more: str = LOCAL) -> list[str]:
    (folder / "pythia.yml").write_text(text)
    (folder / "local.yml").write_text(more)
    return [str(folder / "pythia.yml"), str(folder / "local.yml")]


def test_every_key_is_mapped_or_named(tmp_path: Path) -> None:
    given = read(write(tmp_path))
    done = convert(given, "pythia.yml", "pythia")
    expected = {
        "n_layer": 6, "n_embd": 512, "n_head": 8, "n_ctx": 2048, "n_vocab": 50432, "pos_emb": "rotary",
        "rotary_pct": 0.25, "no_weight_tie": True, "gpt_j_residual": True, "gpt_j_tied": False, "norm": "layernorm",
        "attention_types": [[["global"], 6]], "activation_function": "gelu", "intermediate_size": 2048, "lr": 0.001,
        "beta2": 0.95, "lr_decay": "cosine", "lr_decay_end": 143000, "warmup_steps": 1430, "train_steps": 143000,
        "train_batch_size": 32, "weight_decay": 0.1, "precision": "bfloat16", "recompute_grad": True,
        "eval_steps": 0, "model_path": "checkpoints", "scale_attn_weights": True, "use_bias_in_attn_linear": True,
        "datasets": [["pythia", 25, "documents_random", 1.0]],
    }  # fmt: skip
    assert {key: done.values[key] for key in expected} == expected
    assert done.dataset == {
        "n_vocab": 50257, "path": ["data/enwik8_text_document"], "eval_path": [], "eos_id": 50256,
    }  # fmt: skip
    assert {*done.unused} <= UNUSED and {"num_workers", "zero_optimization", "pipe_parallel_size"} <= {*done.unused}
    notes = "\n".join(done.notes)
    assert "--steps_per_checkpoint 1000" in notes and "bfloat16 here" in notes and "min_lr" not in notes


def test_what_is_written_are_our_keys(tmp_path: Path) -> None:
    done = convert(read(write(tmp_path)), "pythia.yml", "pythia")
    known = {*keys(ModelConfig), *keys(OptimizerConfig), *keys(TrainingConfig), "datasets"}
    awaited = {"scale_attn_weights", "use_bias_in_attn_linear", "num_kv_heads"}
    assert {*done.values} - awaited <= known


@pytest.mark.parametrize(
    ("keys_", "expected"),
    [
        ({"norm": "rmsnorm", "rms_norm_epsilon": 1e-5}, {"norm": "rmsnorm", "norm_epsilon": 1e-5}),
        ({"activation": "gelu", "bias_gelu_fusion": False}, {"activation_function": "gelu_exact"}),
        ({"activation": "swiglu"}, {"activation_function": "silu", "mlp_glu": True, "intermediate_size": 682}),
        ({"num_kv_heads": 2}, {"num_kv_heads": 2}),
        ({"lr_decay_style": "constant"}, {"lr_decay": "none"}),
        ({"precision": "fp32"}, {"precision": "float32"}),
        ({"train_batch_size": 256}, {"train_batch_size": 256, "tokens_per_mb_per_replica": 65536}),
        ({"attention_config": [[["local", "global"], "all"]]}, {"attention_types": [[["local", "global"], 3]]}),
    ],
)
def test_keys(tmp_path: Path, keys_: dict[str, Any], expected: dict[str, Any]) -> None:
    given = {key.replace("-", "_"): value for key, value in read(write(tmp_path)).items()}
    done = convert({**given, **keys_}, "pythia.yml", "pythia")
    assert {key: done.values[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("keys_", "words"),
    [
        ({"num_layerz": 3}, r"^p\.yml: num_layerz = 3: unknown key of GPT-NeoX"),
        ({"num_layers": None}, "num_layers: required but missing"),
        ({"num_layers": "six"}, 'num_layers = "six": must be a number'),
        ({"pos_emb": "rpe"}, 'pos_emb = "rpe": must be learned, rotary, alibi or none here'),
        ({"attention_config": [[["bigbird"], 6]]}, 'attention_config = "bigbird": only global, flash and local'),
        ({"optimizer": {"type": "Lion", "params": {"lr": 1}}}, 'optimizer = "Lion": must be Adam or AdamW'),
        ({"optimizer": {"params": {}}}, "has no lr in its params"),
        ({"activation": "geglu2"}, "activation = "),
        ({"soft_prompt_tuning": {"enabled": True}}, "soft_prompt_tuning = .*cannot be set here"),
        ({"mlp_type": "llama"}, "mlp_type = \"llama\": must be 'regular' here"),
        ({"tokenizer_type": "TiktokenTokenizer"}, "tokenizer_type = .*use one of"),
        ({"data_path": None}, "data_path: required but missing"),
        ({"train_data_paths": ["a", "b"], "train_data_weights": [1, 2]}, "write a dataset config for each path"),
    ],
)
def test_what_has_no_key_here(tmp_path: Path, keys_: dict[str, Any], words: str) -> None:
    given = {key.replace("-", "_"): value for key, value in read(write(tmp_path)).items()}
    with pytest.raises(InputError, match=words) as caught:
        convert({**given, **keys_}, "p.yml", "p")
    assert "\n" not in str(caught.value)


def test_a_key_in_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'local\.yml: num-layers = 3: is in another of the files too'):
        read(write(tmp_path, more="num-layers: 3\n"))


def test_the_command_writes_a_config(tmp_path: Path) -> None:
    if "scale_attn_weights" not in keys(ModelConfig):
        pytest.skip("keys of attention heads are not there")
    command = [sys.executable, "-m", "gpt_mesh.interop.neox_config", *write(tmp_path), "--output", "configs/mine.json"]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrote configs/mine.json and configs/dataset_configs/mine.json" in done.stdout
    assert json.loads((tmp_path / "configs" / "mine.json").read_text())["n_layer"] == 6
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "already exists; add --overwrite" in again.stderr
