"""Meta's and GPT-NeoX's own layouts: the same weights and logits as in transformers' form, and one line for damage."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from gpt_mesh import api
from gpt_mesh.config import load_config, parse_model
from gpt_mesh.errors import InputError
from gpt_mesh.interop.architectures import ARCHITECTURES, of_config
from gpt_mesh.interop.export_model import export_model
from gpt_mesh.interop.huggingface import main
from gpt_mesh.interop.import_model import Imported, import_model
from gpt_mesh.interop.model_folders import Joined, Part
from gpt_mesh.interop.torch_files import TorchFile
from gpt_mesh.interop.weights import HuggingFaceWeights, open_weights, weight_sizes
from tests.support import neox
from tests.support.hugging_face import write_torch
from tests.support.layouts import LLAMA, NEOX, llama_logits, llama_state, write_meta, write_neox
from tests.support.model_files import train_pieces
from tests.support.runs import Workspace, weights

TOKENS = np.array([5, 81, 2, 400, 7, 7, 300, 11])


def imported(folder: Path, tmp_path: Path, tokenizer: Path | None = None) -> Imported:
    given = None if tokenizer is None else str(tokenizer)
    return import_model(str(folder), "it", config_dir=str(tmp_path), model_path=str(tmp_path / "run"), tokenizer=given)


# Meta


@pytest.mark.parametrize(
    ("shards", "tokens", "changes"),
    [(1, 1, {}), (2, 1, {}), (2, 0, {"rope_theta": 500000.0}), (2, 1, {"n_kv_heads": 4, "ffn_dim_multiplier": 1.3})],
)
def test_llama_has_metas_logits(
    workspace: Workspace, tmp_path: Path, shards: int, tokens: int, changes: dict[str, Any]
) -> None:
    params = LLAMA | changes
    state = llama_state(params)
    folder = write_meta(tmp_path / "theirs", state, params, shards, tokens=tokens)
    done = imported(folder, tmp_path, workspace.tokenizer)
    logits = api.load(done.config).logits(TOKENS)
    np.testing.assert_allclose(logits, llama_logits(state, params, TOKENS), rtol=0, atol=1e-4)
    config = load_config(done.config)
    assert config.model.n_ctx == (8192 if "rope_theta" in changes else 4096)
    assert not {"rope.freqs", "gpt2/rope"} & weights(Path(done.checkpoint)).keys()


def test_shared_heads_on_more_devices_than_heads(workspace: Workspace, tmp_path: Path) -> None:
    """Each head of keys and values is then on several devices."""
    state = llama_state(LLAMA)
    wide = {name: array.repeat(1, 0) for name, array in state.items()}
    for name in wide:
        if ".wk." in name or ".wv." in name:
            wide[name] = np.concatenate([half for half in np.split(state[name], 2) for _ in range(2)])
    whole, cut = write_meta(tmp_path / "whole", state, LLAMA), write_meta(tmp_path / "cut", wide, LLAMA, 4)
    one, four = HuggingFaceWeights(str(whole)), HuggingFaceWeights(str(cut))
    for name in one.shapes:
        np.testing.assert_array_equal(one.read(name), four.read(name), err_msg=name)


def test_llama_goes_on_to_hugging_face(tmp_path: Path) -> None:
    """With its SentencePiece tokenizer, in the folder above, whose beginning-of-text token every text gets."""
    (tmp_path / "llama").mkdir()
    corpus = [line for path in Path(json.__path__[0]).glob("*.py") for line in path.read_text().splitlines()]
    train_pieces(tmp_path / "llama" / "tokenizer.model", corpus, size=400)
    params = LLAMA | {"vocab_size": -1, "use_scaled_rope": True, "rope_theta": 500000.0}
    state = llama_state(params)
    del state["output.weight"]  # tied
    folder = write_meta(tmp_path / "llama" / "1B", state, params)
    done = imported(folder, tmp_path)
    config = load_config(done.config)
    assert (config.model.n_vocab, config.model.n_ctx, config.model.no_weight_tie) == (520, 131072, False)
    assert config.model.rope_scaling is not None and config.model.rope_scaling.factor == 32
    dataset = config.data.datasets[0].dataset
    assert (dataset.bos_id, dataset.eos_id, dataset.stop_token_ids) == (1, 2, None)
    model = api.load(done.config)
    assert model.generator().prompt_tokens(model_request("import json")) == [1, *model.encoder.encode("import json")]
    export_model(config, done.checkpoint, str(tmp_path / "out"))
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["model_type"], values["bos_token_id"], values["eos_token_id"]) == ("llama", 1, 2)
    again = load_file(tmp_path / "out" / "model.safetensors")
    for name, head in (("q", 4), ("k", 2)):  # the rows of a head: first members of all pairs, then second ones
        pairs = state[f"layers.1.attention.w{name}.weight"].reshape(head, 4, 2, 32)
        wanted = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], 1).reshape(-1, 32)
        np.testing.assert_array_equal(again[f"model.layers.1.self_attn.{name}_proj.weight"], wanted)
    from transformers import AutoTokenizer

    judge = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    for text in ("import json", " a  b", ""):
        assert judge(text).input_ids == [1, *model.encoder.encode(text)]


def model_request(prompt: str) -> Any:
    from gpt_mesh.config import GenerationSettings
    from gpt_mesh.generation.requests import GenerationRequest

    return GenerationRequest(prompt, GenerationSettings())


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return write_meta(tmp_path / "theirs", llama_state(LLAMA), LLAMA, 2)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


def change(**values: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "params.json").write_text(json.dumps(LLAMA | values))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "params.json").unlink(), r"has no params\.json"),
        (lambda folder: (folder / "consolidated.01.pth").unlink(), r"consolidated\.01\.pth is missing"),
        (lambda folder: (folder / "consolidated.00.pth").unlink(), r"consolidated\.00\.pth is missing"),
        (lambda folder: [path.unlink() for path in folder.glob("*.pth")], r"but no consolidated\.00\.pth"),
        (lambda folder: cut(folder / "consolidated.01.pth"), r"consolidated\.01\.pth: cannot be read"),
        (change(dim="a"), "dim = 'a': must be a positive whole number"),
        (change(n_layers=3), r"has no tensor model\.layers\.2.*params\.json .*asks for"),
        (change(multiple_of=64), r"has shape .*, but params\.json makes it"),
        (change(multiple_of=0), "multiple_of and ffn_dim_multiplier must be numbers"),
        (change(quantization_args={"x": 1}), "quantized weights cannot be read"),
    ],
)  # fmt: skip
def test_damaged_llama(meta: Path, damage: Callable[[Path], object], problem: str) -> None:
    damage(meta)
    with pytest.raises(InputError, match=problem) as caught:
        HuggingFaceWeights(str(meta))
    assert "\n" not in str(caught.value)


def test_parts_of_other_checkpoints(meta: Path, tmp_path: Path) -> None:
    other = write_meta(tmp_path / "other", llama_state(LLAMA | {"dim": 64}), LLAMA | {"dim": 64}, 2)
    shutil.copy(other / "consolidated.01.pth", meta / "consolidated.01.pth")
    with pytest.raises(InputError, match=r"the parts of .* have shapes .*; are they of one checkpoint"):
        HuggingFaceWeights(str(meta))


# GPT-NeoX


HF_NEOX: dict[str, Any] = {
    "model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 520,
    "intermediate_size": 128, "max_position_embeddings": 32, "hidden_act": "gelu_new",
}  # fmt: skip


def neox_state(**keys: Any) -> dict[str, np.ndarray]:
    """Random weights under transformers' names. Their halves are exact, as sums of devices' biases must be."""
    kind = ARCHITECTURES["gpt_neox"]
    values = HF_NEOX | keys
    model = parse_model(kind.read(values, "config.json"), "config.json")
    sizes, rng = weight_sizes(model), np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, np.float32) * 0.3
        for exchange in kind.exchanges(model)
        for name, shape in zip(exchange.theirs, exchange.shapes(sizes), strict=True)
    }


@pytest.mark.parametrize("layers", [True, False], ids=["layers", "devices"])
@pytest.mark.parametrize(("shards", "parallel"), [(1, True), (2, True), (2, False)])
def test_gpt_neox_has_the_logits_of_transformers_form(
    workspace: Workspace, tmp_path: Path, layers: bool, shards: int, parallel: bool
) -> None:
    state = neox_state()
    config = NEOX | {"gpt_j_residual": parallel}
    run = write_neox(tmp_path / "theirs", state, config, shards, layers=layers)
    (tmp_path / "hf").mkdir()
    values = HF_NEOX | {"rotary_pct": 0.25, "use_parallel_residual": parallel}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(values))
    save_file(state, tmp_path / "hf" / "model.safetensors")
    theirs, wanted = HuggingFaceWeights(str(run)), HuggingFaceWeights(str(tmp_path / "hf"))
    assert theirs.architecture == wanted.architecture
    for name in wanted.shapes:
        np.testing.assert_array_equal(theirs.read(name), wanted.read(name), err_msg=name)
    assert open_weights(str(run / "global_step7")).shapes == wanted.shapes
    done = imported(run, tmp_path, workspace.tokenizer)
    assert np.isfinite(api.load(done.config).logits(TOKENS)).all()


def test_a_tied_gpt_neox(tmp_path: Path) -> None:
    state = neox_state(tie_word_embeddings=True)
    run = write_neox(tmp_path / "theirs", state, NEOX | {"no-weight-tying": False}, 2)
    for number in range(2):  # the copy that does the output
        shutil.copy(
            run / "global_step7" / f"layer_00-model_{number:02}-model_states.pt",
            run / "global_step7" / f"layer_06-model_{number:02}-model_states.pt",
        )
    found = HuggingFaceWeights(str(run))
    assert not found.architecture.no_weight_tie
    np.testing.assert_array_equal(found.read("gpt2/wte"), state["gpt_neox.embed_in.weight"])


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    "keys",
    [
        {"pos_emb": "learned", "activation": "relu"},
        {"pos_emb": "alibi", "activation": "swiglu", "norm": "rmsnorm", "use_bias_in_mlp": False},
        {"pos_emb": "rotary", "mlp_type": "llama", "activation": "silu", "norm": "rmsnorm", "rms_norm_epsilon": 1e-7},
        {"pos_emb": "none", "activation": "swiglu", "num_kv_heads": 2, "norm": "scalenorm"},
        {"pos_emb": "rotary", "rotary_pct": 0.5, "activation": "swiglu", "gpt_j_residual": True, "gpt_j_tied": True},
    ],
    ids=["learned", "alibi, gated", "as Llama", "shared heads", "one norm"],
)
def test_gpt_neox_beyond_transformers(workspace: Workspace, tmp_path: Path, devices: int, keys: dict[str, Any]) -> None:
    config = neox.BASE | keys
    state = neox.random_weights(config)
    run = neox.write(tmp_path / "theirs", state, config, devices)
    done = imported(run, tmp_path, workspace.tokenizer)
    found, wanted = api.load(done.config).logits(TOKENS), neox.logits(state, config, TOKENS)
    assert wanted.std() > 1
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    if "mlp_type" in keys:
        assert of_config(load_config(done.config)).model_type == "llama"


def yaml(**values: Any) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        path = run / "global_step7" / "configs" / "model.yml"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return write


def remove(name: str) -> Callable[[Path], None]:
    return lambda run: (run / "global_step7" / name).unlink()


@pytest.mark.parametrize("layers", [True, False], ids=["layers", "devices"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (remove("configs/model.yml"), r"has no configs/\*\.yml"),
        (yaml(**{"pos-emb": "rpe"}), "pos_emb = 'rpe': only 'rotary' or 'learned' or 'alibi' or 'none' can be read"),
        (yaml(use_qk_layernorm=True), "use_qk_layernorm = True"),
        (yaml(use_bias_in_mlp=False), "use_bias_in_mlp = False: with gpt_j_residual, GPT-NeoX leaves attention out"),
        (yaml(num_kv_heads=3), "num_kv_heads = 3: must be a whole number that model_parallel_size divides"),
        (yaml(**{"attention-config": [[["local"], 2]]}), "attention_config: local"),
        (yaml(activation="bilinear"), "activation = 'bilinear': only these can be read: gelu, "),
        (yaml(activation="geglu"), "dense_h_to_4h.weight has shape"),
        (yaml(**{"num-layers": 3}), "has no tensor gpt_neox"),
        (yaml(**{"num-layers": "x"}), "num_layers = 'x'"),
        (yaml(**{"hidden-size": 64}), "has shape"),
        (yaml(**{"model-parallel-size": 3}), r"model(_02-model)?_states\.pt is missing, as .*model_parallel_size = 3"),
    ],
    ids=range(12),
)
def test_damaged_gpt_neox(tmp_path: Path, layers: bool, damage: Callable[[Path], object], problem: str) -> None:
    run = write_neox(tmp_path / "theirs", neox_state(), NEOX, 2, layers=layers)
    damage(run)
    with pytest.raises(InputError, match=problem) as caught:
        HuggingFaceWeights(str(run))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mp_rank_01_model_states.pt", "mp_rank_00_model_states.pt"])
def test_a_missing_device(tmp_path: Path, name: str) -> None:
    run = write_neox(tmp_path / "theirs", neox_state(), NEOX, 2, layers=False)
    (run / "global_step7" / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing"):
        HuggingFaceWeights(str(run))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    run = write_neox(tmp_path / "theirs", neox_state(), NEOX, layers=False)
    path = run / "global_step7" / "mp_rank_00_model_states.pt"
    write_torch(path, {"sequential.0.word_embeddings.weight": np.zeros((4, 4), np.float32)}, {"optimizer": Code()})
    with pytest.raises(InputError, match=r"mp_rank_00_model_states\.pt: not a file of weights alone \(it asks for"):
        HuggingFaceWeights(str(run))
    meta = write_meta(tmp_path / "meta", llama_state(LLAMA), LLAMA)
    write_torch(meta / "consolidated.00.pth", {}, {"optimizer": Code()})
    with pytest.raises(InputError, match="not a file of weights alone"):
        HuggingFaceWeights(str(meta))
    assert not (tmp_path / "ran").exists()


def test_nothing_is_written_of_what_cannot_be_read(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_neox(tmp_path / "theirs", neox_state(), NEOX, layers=False)
    path = run / "global_step7" / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:-3000])
    flags = ["--name", "x", "--config_dir", str(tmp_path / "c"), "--model_path", str(tmp_path / "r")]
    assert main(["import", str(run), *flags, "--tokenizer", str(workspace.tokenizer)]) == 1
    assert "mp_rank_00_model_states.pt: cannot be read" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "c").exists() and not (tmp_path / "r").exists()
    assert not tf.io.gfile.glob(str(tmp_path / "*importing*"))


@pytest.mark.parametrize("axis", [0, 1, None])
def test_memory_for_a_joined_tensor(tmp_path: Path, axis: int | None) -> None:
    """The whole and one part."""
    size, shards = 1024, 4
    shape = {0: (size // shards, size), 1: (size, size // shards), None: (size, size)}[axis]
    files = []
    for number in range(shards):
        write_torch(tmp_path / f"{number}.pth", {"w": np.full(shape, number + 1, np.float32)})
        files.append(TorchFile(str(tmp_path / f"{number}.pth")))
    joined = Joined([Part(file, "w") for file in files], axis)
    tracemalloc.start()
    try:
        whole = joined.read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    numbers = np.repeat(np.arange(1.0, 5.0), size // shards)
    wanted = {0: numbers[:, None], 1: numbers[None], None: np.full((1, 1), 2.5)}[axis]
    np.testing.assert_array_equal(whole, np.broadcast_to(wanted, (size, size)))
    part = 4 * size * size if axis is None else size * size
    assert peak < 4 * size * size + 1.2 * part + (1 << 20)
