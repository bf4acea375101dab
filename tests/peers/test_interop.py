"""Models exchanged with Hugging Face's transformers, both ways and in both of its versions: the same logits, the same
greedy text, the same ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import api
from gpt_mesh.config import Config, load_config
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.engine import checkpoint_stream, checkpoints
from gpt_mesh.interop import architecture
from gpt_mesh.interop.export_model import export_model
from gpt_mesh.interop.import_model import import_model
from gpt_mesh.models.activations import ACTIVATIONS, Elementwise
from tests.peers.test_hugging_face import LARGE_TOLERANCE, MIXED, MODEL, TRAINED_TOLERANCE, held_out, large
from tests.support.outside import TRANSFORMERS_5, ask
from tests.support.runs import Workspace, weights

pytestmark = pytest.mark.peers

SITES = (None, TRANSFORMERS_5)  # of transformers 4.57.6 and of 5
PROMPT, NEW = "import email", 16
TEXTS = ["def f(x):\n    return x", " café ☕ 123", "<|endoftext|>a"]
THEIRS = {
    "vocab_size": 320, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 8,
    "max_position_embeddings": 32, "attention_types": [[["global", "local"], 1]], "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def check_loads(config: Config, checkpoint: str, exported: Path, folder: Path, tolerance: float) -> None:
    """Both versions load the folder and do with it what we do with the checkpoint."""
    (tokens,) = held_out(config, (32,))
    ours = api.Model(config, checkpoint=checkpoint)
    n_vocab = ours.encoder.n_vocab
    logits = ours.logits(tokens)[..., :n_vocab]
    (text,) = ours.generate([PROMPT], max_new_tokens=NEW, temperature=0)[0]
    job = {"folder": str(exported), "tokens": tokens.tolist(), "prompt": PROMPT, "new": NEW, "texts": TEXTS}
    for version, site in zip((4, 5), SITES, strict=True):
        theirs = ask("pretrained", job, folder, site=site)
        assert theirs["version"][0] == version and theirs["logits"].shape == (2, 32, n_vocab)
        np.testing.assert_allclose(logits, theirs["logits"], rtol=0, atol=tolerance)
        assert text == ours.encoder.decode([number for number in theirs["grown"].tolist() if number != ours.eos_id])
        assert theirs["texts"].tolist() == [number for text in TEXTS for number in ours.encoder.encode(text)]
        assert theirs["specials"].tolist() == [ours.eos_id, ours.encoder.padding_id, ours.eos_id]


def test_a_trained_model_runs_there(workspace: Workspace, tmp_path: Path) -> None:
    config = load_config(str(workspace.config("goes_out", **MODEL, **MIXED, train_steps=200)))
    result = api.train(config)
    export_model(config, result.checkpoint, str(tmp_path / "out"))
    check_loads(config, result.checkpoint, tmp_path / "out", tmp_path, TRAINED_TOLERANCE)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"n_vocab": 352}, id="padded"),
        pytest.param({"n_vocab": 352, "no_weight_tie": True, "local_attention_radius": 100}, id="untied"),
        pytest.param({"n_embd": 48, "n_head": 2, "n_layer": 3, "attention_types": [[["local"], 3]],
                      "activation_function": "silu"}, id="all_local"),
    ],
)  # fmt: skip
def test_large_random_weights_run_there(workspace: Workspace, tmp_path: Path, keys: dict[str, Any]) -> None:
    config = load_config(str(workspace.config(f"{tmp_path.name}_out", **{**MODEL, **MIXED, **keys})))
    checkpoint = unlikely_padding(config, large(config, tmp_path), tmp_path / "run")
    export_model(config, checkpoint, str(tmp_path / "out"), shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    check_loads(config, checkpoint, tmp_path / "out", tmp_path, LARGE_TOLERANCE)


def unlikely_padding(config: Config, checkpoint: str, directory: Path) -> str:
    """The same weights, but for ids beyond the tokenizer's: these score nothing, as after training."""
    arrays = weights(Path(checkpoint))
    arrays["gpt2/wte"][320:] = 0
    if config.model.no_weight_tie:
        arrays["gpt2/linear_out/kernel"][:, 320:] = 0
    del arrays["global_step"]
    directory.mkdir()
    return checkpoint_stream.write(str(directory), 0, arrays.items(), {})


def test_activations_are_the_same_under_their_names_there(tmp_path: Path) -> None:
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    names = dict(architecture.ACTIVATIONS)
    for site in SITES:
        theirs = ask("activations", {"names": list(names), "x": x.tolist()}, tmp_path, site=site)
        for name, ours in names.items():
            activation = ACTIVATIONS[ours]
            found = activation.function(tf.constant(x)).numpy() if isinstance(activation, Elementwise) else x
            np.testing.assert_allclose(found, theirs[name], rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("form", "dtype", "keys", "site"),
    [
        ("shards", "float32", {"activation_function": "silu"}, TRANSFORMERS_5),
        ("bin", "float16", {}, None),
        ("safetensors", "bfloat16", {"tie_word_embeddings": False}, TRANSFORMERS_5),
    ],
)
def test_their_models_run_here(
    workspace: Workspace, tmp_path: Path, form: str, dtype: str, keys: dict[str, Any], site: Path | None
) -> None:
    tokens = np.random.default_rng(0).integers(0, 320, (2, 32))
    folder = tmp_path / "theirs"
    job = {"folder": str(folder), "model": THEIRS | keys, "form": form, "dtype": dtype, "tokens": tokens.tolist()}
    theirs = ask("made_up", job, tmp_path, site=site)
    done = import_model(
        str(folder), "came", config_dir=str(tmp_path), model_path=str(tmp_path / "run"),
        tokenizer=str(workspace.tokenizer),
    )  # fmt: skip
    model = api.load(done.config)
    np.testing.assert_allclose(model.logits(tokens), theirs["logits"], rtol=0, atol=LARGE_TOLERANCE)
    assert theirs["logits"].std() > 0.5


def test_an_imported_checkpoint_is_what_their_loader_reads(workspace: Workspace, tmp_path: Path) -> None:
    """Hugging Face -> our checkpoint -> Hugging Face's reader of TensorFlow checkpoints: where it began."""
    tokens = np.random.default_rng(0).integers(0, 320, (2, 32)).tolist()
    job = {"folder": str(tmp_path / "theirs"), "model": THEIRS, "form": "shards", "tokens": tokens}
    theirs = ask("made_up", job, tmp_path)["logits"]
    done = import_model(
        str(tmp_path / "theirs"), "came", config_dir=str(tmp_path), model_path=str(tmp_path / "run"),
        tokenizer=str(workspace.tokenizer),
    )  # fmt: skip
    keys = {name: value for name, value in THEIRS.items() if not name.endswith("_id")}
    read = ask("logits", {"checkpoint": done.checkpoint, "model": keys, "tokens": [tokens]}, tmp_path)
    np.testing.assert_allclose(read["0"], theirs, rtol=0, atol=1e-6)
    assert checkpoints.restore_state(done.checkpoint)["init_from"] == str(tmp_path / "theirs")


def test_special_tokens_survive_both_ways(workspace: Workspace, tmp_path: Path) -> None:
    """The exported tokenizer, imported again, is the one that it was."""
    config = load_config(str(workspace.config("tokenizer_out", **MODEL, **MIXED)))
    export_model(config, large(config, tmp_path), str(tmp_path / "out"))
    first, second = load_encoder(str(workspace.tokenizer)), load_encoder(str(tmp_path / "out"))
    assert first.fingerprint == second.fingerprint
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == first.eos_id
