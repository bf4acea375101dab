"""Hugging Face's architectures: config.json both ways in both versions' styles, every tensor once, what is refused.

That transformers computes the same is shown in `tests/peers/test_families.py`.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt_mesh.config import Config, load_config, parse_model, replace
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.interop.architectures import ARCHITECTURES, of_config, of_values
from gpt_mesh.interop.export_model import export_model
from gpt_mesh.interop.huggingface import main
from gpt_mesh.interop.import_model import import_model
from gpt_mesh.interop.weights import HuggingFaceWeights, weight_sizes
from tests.support.families import FAMILIES, LLAMA3, SHAPES
from tests.support.models import tiny_config
from tests.support.runs import Workspace

SOURCE = "config.json"


def described(family: str, shape: str, **keys: Any) -> dict[str, Any]:
    """A config.json. keys: in place of the shape's."""
    return {"model_type": family, **FAMILIES[family][shape], **keys}


def config_of(values: dict[str, Any]) -> Config:
    """A config with the model that a config.json describes."""
    return tiny_config(**{"attention_types": None, **of_values(values, SOURCE).read(values, SOURCE)})


def write_model(folder: Path, values: dict[str, Any], tokenizer: Path, dtype: Any = np.float32) -> dict[str, Any]:
    """A folder with random weights; returns them."""
    kind = of_values(values, SOURCE)
    model = parse_model(kind.read(values, SOURCE), SOURCE)
    sizes, rng = weight_sizes(model), np.random.default_rng(0)
    state = {
        name: rng.standard_normal(shape).astype(dtype)
        for exchange in kind.exchanges(model)
        for name, shape in zip(exchange.theirs, exchange.shapes(sizes), strict=True)
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_each_weight_and_each_tensor_occurs_once(family: str, shape: str) -> None:
    model = config_of(described(family, shape)).model
    exchanges, sizes = ARCHITECTURES[family].exchanges(model), weight_sizes(model)
    ours = [name for exchange in exchanges for name in exchange.ours]
    theirs = [name for exchange in exchanges for name in exchange.theirs]
    assert sorted(ours) == sorted(sizes)
    assert len({*theirs}) == len(theirs)
    assert all(name.startswith((ARCHITECTURES[family].prefix, "lm_head.", "embed_out.")) for name in theirs)


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_tensors_come_back_bit_for_bit(family: str, shape: str) -> None:
    model = config_of(described(family, shape)).model
    sizes, rng = weight_sizes(model), np.random.default_rng(0)
    for exchange in ARCHITECTURES[family].exchanges(model):
        theirs = [rng.standard_normal(size).astype(np.float32) for size in exchange.shapes(sizes)]
        ours = exchange.unpack(theirs)
        assert [array.shape for array in ours] == [sizes[name] for name in exchange.ours]
        for found, wanted in zip(exchange.pack(ours), theirs, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_a_config_json_survives_both_ways(family: str, shape: str) -> None:
    config = config_of(described(family, shape))
    kind = ARCHITECTURES[family]
    assert kind.obstacles(config) == []
    again = kind.described(config.model)
    assert json.loads(json.dumps(again)) == again
    assert kind.described(parse_model(kind.read(again, SOURCE), SOURCE)) == again


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("llama", {"rope_theta": 500.0}, {"rope_theta": 500.0, "rope_type": "default"}),
        ("llama", {"rope_theta": 500.0, "rope_scaling": LLAMA3}, {"rope_theta": 500.0, **LLAMA3}),
        ("mixtral", {}, {"rope_type": "default"}),
        (
            "gpt_neox",
            {"rotary_pct": 0.5, "rotary_emb_base": 500.0},
            {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
        ),
        ("falcon", {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_both_styles_of_rotary_settings(family: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    values = {"model_type": family, **FAMILIES[family][next(iter(FAMILIES[family]))]}
    values = {name: value for name, value in values.items() if not name.startswith("rot")}
    first, second = (config_of(values | keys).model for keys in (old, {"rope_parameters": new, "dtype": "float32"}))
    assert first == second


@pytest.mark.parametrize(
    ("family", "keys", "words"),
    [
        ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, 'rope_scaling: rope_type = "longrope"'),
        ("llama", {"rope_parameters": {"rope_type": []}}, "rope_parameters: rope_type = []"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one set of settings for all layers"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("llama", {"rope_scaling": "linear"}, 'rope_scaling = "linear"'),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("llama", {"hidden_act": "relu2"}, 'hidden_act = "relu2"'),
        ("llama", {"num_key_value_heads": 3}, "num_kv_heads = 3"),
        ("llama", {"quantization_config": {"bits": 4}}, "the weights are quantized"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM can be read"),
        ("mistral", {"attention_bias": True}, "attention_bias = true"),
        ("mistral", {"sliding_window": 0}, "sliding_window = 0"),
        ("mixtral", {"num_hidden_layers": "2"}, 'num_hidden_layers = "2"'),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "no sliding_window in use"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": None}, "max_window_layers = null"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias = true"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = true"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = true"),
        ("gptj", {"rotary_dim": None}, "rotary_dim = null"),
        ("falcon", {"alibi": True}, "alibi = true"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn = 2"),
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn = false"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ],
)
def test_settings_without_a_counterpart_are_refused(family: str, keys: dict[str, Any], words: str) -> None:
    values = described(family, next(iter(FAMILIES[family])), **keys)
    with pytest.raises(InputError) as refused:
        parse_model(ARCHITECTURES[family].read(values, SOURCE), SOURCE)
    assert str(refused.value).startswith(f"{SOURCE}: ") and words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"norm": "rmsnorm"}, "tiny.json: norm = rmsnorm: GPT-Neo has no such part"),
        ({"macaron": True, "num_mem_kv": 2}, "tiny.json: macaron = true, num_mem_kv = 2: GPT-Neo has no such part"),
        ({"mlm_training": True, "mlm_mask_id": 3}, "can express this model: GPT-Neo has no mlm_training = true; GPT-2"),
    ],
)
def test_the_nearest_architectures_are_named(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        of_config(tiny_config(**keys))
    assert words in str(refused.value)


def test_a_key_away_from_a_llama_says_which() -> None:
    config = replace(config_of(described("llama", "whole")), qk_norm=True, embed_norm=True)
    with pytest.raises(InputError, match="embed_norm = true: Qwen 3 has no such part"):
        of_config(config)
    with pytest.raises(InputError, match=r"qk_norm = true, embed_norm = true: Llama .*; leave out --architecture"):
        of_config(config, "llama")


def test_where_several_architectures_fit_one_can_be_chosen(workspace: Workspace, tmp_path: Path) -> None:
    write_model(tmp_path / "theirs", described("mistral", "whole"), workspace.tokenizer)
    done = import_model(
        str(tmp_path / "theirs"), "came", config_dir=str(tmp_path), model_path=str(tmp_path / "run")
    )  # fmt: skip
    for flags, wanted in (([], "llama"), (["--architecture", "mistral"], "mistral")):
        assert main(["export", done.config, str(tmp_path / wanted), *flags]) == 0
        assert json.loads((tmp_path / wanted / "config.json").read_text())["model_type"] == wanted
        assert of_values(read(tmp_path / wanted), SOURCE).model_type == wanted


def read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


@pytest.mark.parametrize(("family", "shape"), [(family, next(iter(shapes))) for family, shapes in FAMILIES.items()])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_comes_back_as_it_was(
    workspace: Workspace, tmp_path: Path, family: str, shape: str, dtype: str
) -> None:
    """Import, then export in the type of the files, with more rows than the tokenizer has tokens."""
    import ml_dtypes

    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    values = described(family, shape, vocab_size=352)
    state = write_model(tmp_path / "theirs", values, workspace.tokenizer, kind)
    done = import_model(str(tmp_path / "theirs"), "came", config_dir=str(tmp_path), model_path=str(tmp_path / "run"))
    config = load_config(done.config)
    export_model(config, done.checkpoint, str(tmp_path / "back"), architecture=family, dtype=dtype, shard_bytes=30_000)
    parts = sorted((tmp_path / "back").glob("*.safetensors"))
    found = {name: array for part in parts for name, array in load_file(part).items()}
    assert len(parts) > 2 and found.keys() == state.keys()
    for name, array in state.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name
    again = HuggingFaceWeights(str(tmp_path / "back"))
    assert again.architecture == config.model


def test_stacked_experts_are_read_one_at_a_time(workspace: Workspace, tmp_path: Path) -> None:
    """Memory for the whole weight and one of its tensors."""
    values = described("mixtral", "plain", num_local_experts=16, hidden_size=128, intermediate_size=512)
    write_model(tmp_path / "theirs", values, workspace.tokenizer)
    weights, name = HuggingFaceWeights(str(tmp_path / "theirs")), "gpt2/h1/moe/experts/wi"
    whole = 4 * 16 * 128 * 512
    tracemalloc.start()
    try:
        assert weights.read(name).nbytes == whole
        assert tracemalloc.get_traced_memory()[1] < whole * 1.25
    finally:
        tracemalloc.stop()


def test_a_config_json_of_another_family_than_the_weights(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    write_model(folder, described("llama", "whole"), workspace.tokenizer)
    (folder / "config.json").write_text(json.dumps(described("qwen3", "grouped")))
    with pytest.raises(InputError) as refused:
        import_model(str(folder), "came", config_dir=str(tmp_path), model_path=str(tmp_path / "run"))
    assert "has no tensor model.layers.0.self_attn.q_norm.weight, " in str(refused.value)
    assert "(model_type = qwen3) asks for" in str(refused.value) and "lm_head" not in str(refused.value)
    (folder / "config.json").write_text(json.dumps(described("gpt_neox", "parallel")))
    with pytest.raises(InputError) as refused:
        import_model(str(folder), "came", config_dir=str(tmp_path), model_path=str(tmp_path / "run"))
    assert "has no tensor gpt_neox.embed_in.weight" in str(refused.value)
    assert "more instead; is one of the two another model's?" in str(refused.value)
    assert not checkpoints.steps(str(tmp_path / "run")) and not (tmp_path / "came.json").exists()


def test_an_unknown_rope_type_leaves_nothing_behind(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    write_model(folder, described("llama", "whole"), workspace.tokenizer)
    values = described("llama", "whole", rope_scaling={"type": "su", "factor": 2.0})
    (folder / "config.json").write_text(json.dumps(values))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match='rope_type = "su": only these are supported: default, linear'):
        import_model(str(folder), "came", config_dir=str(tmp_path), model_path=str(tmp_path / "run"))
    assert sorted(tmp_path.rglob("*")) == before
