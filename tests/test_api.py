"""The library's face: what goes in, what comes out, and several models in one process."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import api, model_fns
from gpt_mesh.config import load_config, replace
from gpt_mesh.errors import InputError
from gpt_mesh.models.shapes import weight_shapes
from tests.support.models import make_engine
from tests.support.runs import (
    N_CTX,
    N_VOCAB,
    ONE_LAYER,
    REPOSITORY,
    STEPS,
    Trained,
    Workspace,
    logged,
    rows,
)

# Python's own words, and what others write: accents, another script, an emoji, both kinds of line end, and no end.
TEXTS = ("import os\n", "import os", "\n\n", "naïve Κα 世界 🚀", "a\r\nb\n", " <|endoftext|> is text here")


@pytest.fixture(scope="module")
def model(trained: Trained) -> api.Model:
    return api.load(str(trained.directory))


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the library logs."""
    with logged() as messages:
        yield messages


def next_logits(model: api.Model, tokens: list[int]) -> np.ndarray:
    """`model.logits` of at most n_ctx tokens, asked for at one length, so that one is compiled."""
    padded = np.zeros(N_CTX, np.int32)
    padded[: len(tokens)] = tokens
    return model.logits(padded)[: len(tokens)]


def expected_logprobs(model: api.Model, tokens: list[int]) -> np.ndarray:
    """The log-softmax of the logits, at each of at most n_ctx + 1 tokens but the first."""
    logits = next_logits(model, tokens[:-1]).astype(np.float64)
    top = logits.max(-1, keepdims=True)
    logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return logprobs[np.arange(len(tokens) - 1), tokens[1:]]


# Logits


def test_logits_have_the_shape_of_the_tokens_and_see_only_what_came_before(model: api.Model) -> None:
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, (2, 9))
    logits = model.logits(tokens)
    assert logits.shape == (2, 9, N_VOCAB) and logits.dtype == np.float32
    single = model.logits(tokens[1].tolist())
    assert single.shape == (9, N_VOCAB)
    np.testing.assert_allclose(single, logits[1], atol=1e-5)
    changed = tokens.copy()
    changed[:, 5:] = 7
    np.testing.assert_allclose(model.logits(changed)[:, :5], logits[:, :5], atol=1e-5)
    assert model.logits(np.zeros((1, N_CTX), np.uint8)).shape == (1, N_CTX, N_VOCAB)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([[1, N_VOCAB]], "ids must be from 0 to n_vocab - 1 = 319"),
        ([[1, 2**32 + 5]], "ids must be from 0 to n_vocab - 1 = 319"),
        ([-1], "tokens from -1 to -1"),
        ([1.5], "type float64"),
        (["import"], "type <U6"),
        ([[1, 2], [3]], "differ in length"),
        ([], r"shape \[0\]"),
        (np.zeros((0, 4), int), r"shape \[0, 4\]"),
        (3, r"shape \[\]"),
        ([[[1]]], r"shape \[1, 1, 1\]"),
        ([1] * (N_CTX + 1), "n_ctx = 32"),
    ],
)
def test_tokens_that_cannot_be_given(model: api.Model, tokens: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.logits(tokens)  # type: ignore[arg-type]


# Scores


@pytest.mark.parametrize("text", TEXTS)
def test_a_score_is_the_log_softmax_of_the_logits_of_the_very_text(model: api.Model, text: str) -> None:
    (score,) = model.score([text])
    assert model.encoder.decode(score.tokens) == text
    assert model.eos_id not in score.tokens
    assert score.bytes == len(text.encode())
    assert score.logprobs[0] is None and len(score.logprobs) == len(score.tokens)
    assert 1 < len(score.tokens) <= N_CTX + 1
    expected = expected_logprobs(model, score.tokens)
    np.testing.assert_allclose(np.array(score.logprobs[1:], float), expected, atol=1e-4)
    assert score.sum == pytest.approx(expected.sum(), abs=1e-3)


@pytest.mark.parametrize("length", [1, 2, N_CTX, N_CTX + 1, N_CTX + 2, 3 * N_CTX + 1, 3 * N_CTX + 5])
def test_a_document_of_any_length_has_every_token_scored_once(model: api.Model, length: int) -> None:
    text = "x" * length
    while len(model.encoder.encode(text)) < length:
        text += "x"
    (score,) = model.score([text])
    n = len(score.tokens)
    assert [value is None for value in score.logprobs] == [True] + [False] * (n - 1)
    for start in range(0, n - 1, N_CTX):  # a window is the context, and the first token of the next one
        window = score.tokens[start : start + N_CTX + 1]
        found = np.array(score.logprobs[start + 1 : start + len(window)], float)
        np.testing.assert_allclose(found, expected_logprobs(model, window), atol=1e-4)


def test_an_empty_document_has_an_empty_score(model: api.Model) -> None:
    assert model.score([]) == []
    assert model.score(["", "a"])[0] == api.Score([], [], 0.0, 0)


# Generation


def test_greedy_generation_takes_the_largest_logit(model: api.Model) -> None:
    prompt = "import os\n"
    text = model.generate([prompt], max_new_tokens=5, temperature=0)[0][0]
    tokens = model.encoder.encode(prompt)
    for _ in range(5):
        tokens.append(int(next_logits(model, tokens)[-1].argmax()))
        if tokens[-1] == model.eos_id:
            tokens.pop()
            break
    assert prompt + text == model.encoder.decode(tokens)


def test_samples_differ_and_repeat_with_their_seed(model: api.Model) -> None:
    prompts = ["import ", "def test"]
    found = model.generate(prompts, max_new_tokens=12, samples=2, seed=5)
    assert [len(texts) for texts in found] == [2, 2]
    assert len(set(itertools.chain(*found))) == 4
    assert model.generate(prompts, max_new_tokens=12, samples=2, seed=5) == found
    assert model.generate(prompts, max_new_tokens=12, samples=2, seed=6) != found
    assert model.generate(prompts[:1], max_new_tokens=12, samples=1, seed=5)[0] == found[0][:1]
    assert model.generate([]) == []


def test_generation_has_the_length_that_is_asked_for(model: api.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.encoder, "decode", lambda tokens: "." * len(tokens))  # as many letters as tokens
    # The config's predict_max_steps is 8. One of the prompts is empty, and begins with the end-of-text token instead.
    for wanted, most in ((None, 8), (1, 1), (20, 20), (1000, N_CTX - 1)):
        found = model.generate(["a", ""], samples=4, max_new_tokens=wanted)
        assert [max(map(len, texts)) for texts in found] == [most, most]  # some end earlier, by an end of text


def test_a_long_prompt_keeps_its_end_and_says_so(model: api.Model, messages: list[str]) -> None:
    long = "import email\n" * 30
    found = model.generate([long], max_new_tokens=4, temperature=0)[0][0]
    count = len(model.encoder.encode(long))
    assert f"the prompt has {count} tokens" in messages[-1]
    assert f"its first {count - 28} are left out" in messages[-1]
    kept = model.encoder.decode(model.encoder.encode(long)[-28:])
    assert model.generate([kept], max_new_tokens=4, temperature=0)[0][0] == found


def test_generation_refuses_what_it_cannot_do(model: api.Model) -> None:
    with pytest.raises(InputError, match="temperature = -1"):
        model.generate(["a"], temperature=-1)
    with pytest.raises(InputError, match="temperature = NaN"):
        model.generate(["a"], temperature=float("nan"))
    with pytest.raises(InputError, match=r"logprobs = 2: .* model.generator\(\)"):
        model.generate(["a"], logprobs=2)
    with pytest.raises(InputError, match="samples = 0"):
        model.generate(["a"], samples=0)
    with pytest.raises(InputError, match="max_new_tokens = 0"):
        model.generate(["a"], max_new_tokens=0)


# Loading


def test_load_takes_a_run_a_checkpoint_or_a_config(trained: Trained, model: api.Model, tmp_path: Path) -> None:
    shutil.copytree(trained.directory, tmp_path / "moved")  # the run alone, without its config and its dataset's
    tokens = list(range(5))
    last = model.logits(tokens)
    assert model.step == STEPS
    np.testing.assert_array_equal(api.load(str(tmp_path / "moved")).logits(tokens), last)
    for what in (str(trained.config), load_config(str(trained.config))):
        assert api.load(what).checkpoint == model.checkpoint
    first = api.load(str(tmp_path / "moved" / "model.ckpt-40"))
    assert first.step == 40
    assert np.abs(first.logits(tokens) - last).max() > 0.01
    np.testing.assert_array_equal(model.logits(tokens), last)  # the others loaded since have not touched it


def test_load_and_evaluate_refuse_weights_that_are_no_numbers(workspace: Workspace) -> None:
    config = load_config(str(workspace.config("no_numbers", **ONE_LAYER)))
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=False)
    weight = next(variable for name, variable in engine.store.masters.items() if name.startswith("gpt2/"))
    weight.assign(np.nan * weight)
    engine.save(config.training.model_path, 3, {})
    for use in (api.load, api.evaluate):
        with pytest.raises(InputError, match=r"model\.ckpt-3: gpt2/\S+ has elements that are not finite"):
            use(config)


def test_load_names_what_is_not_there(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json there; give the directory of a run"):
        api.load(str(tmp_path))
    with pytest.raises(InputError, match="neither the directory of a run, nor a checkpoint, nor a config"):
        api.load(str(tmp_path / "model.ckpt-5"))
    with pytest.raises(InputError, match=r"no such model config.*did you mean laptop"):
        api.load("laptob")
    with pytest.raises(InputError, match="there is no checkpoint; train first"):
        api.load(str(workspace.config("nothing_trained")))


def test_a_tokenizer_larger_than_the_model_is_refused(trained: Trained, tmp_path: Path) -> None:
    from tests.support.corpora import make_tokenizer

    shutil.copytree(trained.directory, tmp_path / "run")
    larger = make_tokenizer(tmp_path / "larger", n_vocab=N_VOCAB + 1)
    dataset = tmp_path / "run" / "dataset_configs" / "tiny.json"
    dataset.write_text(json.dumps({**json.loads(dataset.read_text()), "tokenizer_path": str(larger)}))
    with pytest.raises(InputError, match="n_vocab = 320 is smaller than the tokenizer's vocabulary"):
        api.load(str(tmp_path / "run")).score(["a"])


# Training and evaluation


def test_two_models_train_evaluate_and_score_in_one_process(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    built = dict.fromkeys(("build_train", "build_eval"), 0)
    for name in built:
        original = getattr(model_fns, name)

        def counted(*args: object, _name: str = name, _original: object = original, **keys: object) -> object:
            built[_name] += 1
            return _original(*args, **keys)  # type: ignore[operator]

        monkeypatch.setattr(model_fns, name, counted)
    first = load_config(str(workspace.config("first", train_steps=6, eval_steps=1, **ONE_LAYER)))
    result = api.train(first, steps_per_checkpoint=2)
    assert (result.step, result.interrupted) == (6, False)
    evaluations = rows(workspace.root / "first" / "eval.jsonl")
    assert [row["step"] for row in evaluations] == [2, 4, 6]
    assert built == {"build_train": 1, "build_eval": 1}  # whatever the number of checkpoints
    assert result.evaluation is not None and result.evaluation["nll"] == evaluations[-1]["nll"]

    second = str(workspace.config("second", train_steps=2, n_embd=16, **ONE_LAYER))
    assert api.train(second).step == 2
    assert api.train(first).checkpoint == result.checkpoint  # nothing to do, the second time
    assert messages[-1].startswith(f"{result.checkpoint} is at step 6 of 6: nothing to train")

    one, other = api.load(first), api.load(second)
    assert one.logits([1, 2]).shape == other.logits([1, 2]).shape
    assert one.score(["import"])[0].tokens == other.score(["import"])[0].tokens
    assert one.score(["import"])[0].sum != other.score(["import"])[0].sum
    found = api.evaluate(first)
    assert found == {"step": 6, **result.evaluation}
    earlier = api.evaluate(first, checkpoint=str(workspace.root / "first" / "model.ckpt-2"))
    assert earlier["step"] == 2 and earlier["nll"] == evaluations[0]["nll"]
    whole = api.evaluate(replace(first, eval_steps=0))
    assert whole["tokens"] == 4000 and found["tokens"] == 4 * N_CTX  # every token of the held-out set


def test_evaluate_without_a_tokenizer_has_no_bits_per_byte(
    trained: Trained, tmp_path: Path, messages: list[str]
) -> None:
    shutil.copytree(trained.directory, tmp_path / "run")
    dataset = tmp_path / "run" / "dataset_configs" / "tiny.json"
    dataset.write_text(json.dumps({**json.loads(dataset.read_text()), "tokenizer_path": None, "eos_id": 0}))
    config = replace(load_config(str(tmp_path / "run" / "config.json")), model_path=str(tmp_path / "run"))
    found = api.evaluate(config)
    assert found["bits_per_byte"] is None and found["bytes"] is None
    assert found["nll"] == rows(trained.directory / "eval.jsonl")[-1]["nll"]
    assert any(line.startswith("bits per byte are left out: ") for line in messages)


def test_masked_models_are_trained_and_evaluated_but_neither_generate_nor_score(workspace: Workspace) -> None:
    keys = {"mlm_training": True, "mlm_mask_id": 3, "train_steps": 2, "eval_steps": 1, **ONE_LAYER}
    path = workspace.config("masked", **keys)
    result = api.train(str(path))
    assert result.evaluation is not None
    assert result.evaluation["bits_per_byte"] is None and result.evaluation["bytes"] is None
    model = api.load(str(path))
    for use in (model.generate, model.score):
        with pytest.raises(InputError, match="mlm_training models fill masks from both sides; they do not generate"):
            use(["import"])
    with pytest.raises(InputError, match="predict_steps = 1: mlm_training models fill masks"):
        api.train(replace(load_config(str(path)), predict_steps=1, train_steps=3))


def test_held_out_text_of_which_nothing_is_masked_is_one_clear_line(workspace: Workspace) -> None:
    keys = {"mlm_training": True, "mlm_mask_id": 3, "mlm_mask_prob": 1e-9, "train_steps": 1, "eval_steps": 1}
    path = workspace.config("unmasked", **keys, **ONE_LAYER)
    with pytest.raises(
        InputError, match="mlm_mask_prob = 1e-09: of the held-out text not one token was chosen"
    ) as caught:
        api.train(str(path))
    assert "\n" not in str(caught.value)
    assert (workspace.root / "unmasked" / "model.ckpt-1.index").exists()


def test_one_text_is_answered_as_the_only_one_of_a_list(model: api.Model) -> None:
    flags: dict[str, Any] = {"max_new_tokens": 5, "samples": 2, "seed": 3}
    [texts] = model.generate(["import os"], **flags)
    assert model.generate("import os", **flags) == texts and len(texts) == 2
    assert [model.score("import os")] == model.score(["import os"])


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_training_shows_progress_unless_the_program_logs_itself(workspace: Workspace, own: bool) -> None:
    config = workspace.config(f"shown_{own}", train_steps=2, eval_steps=0, predict_steps=0, **ONE_LAYER)
    code = "import logging, sys, gpt_mesh\n"
    code += "logging.basicConfig(level=logging.ERROR)\n" if own else ""
    code += "gpt_mesh.train(sys.argv[1], devices=['device:CPU:0'])"
    command = [sys.executable, "-c", code, str(config)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ("training steps 0 to 2, new run" in done.stderr) != own


def test_a_model_says_what_it_is(model: api.Model) -> None:
    weights = sum(shape.size for shape in weight_shapes(model.config.model).values())
    assert repr(model) == f"<Model of {weights:,} parameters at step 120, context 32: {model.checkpoint}>"


def test_evaluation_finds_a_run_as_loading_does(trained: Trained, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(trained.directory, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert api.evaluate("moved")["step"] == 120
    assert api.evaluate("moved/model.ckpt-40")["step"] == 40
    assert api.evaluate("moved/model.ckpt-40", checkpoint="moved/model.ckpt-80")["step"] == 80


def test_a_run_on_another_file_system_is_loaded(trained: Trained) -> None:
    io, remote = tf.io.gfile, "ram://bucket/run"
    io.makedirs(f"{remote}/dataset_configs")
    for part in [*trained.directory.glob("model.ckpt-120.*"), trained.directory / "checkpoint"]:
        io.copy(str(part), f"{remote}/{part.name}")
    for name in ("config.json", "dataset_configs/tiny.json"):
        io.copy(str(trained.directory / name), f"{remote}/{name}")
    local = api.load(str(trained.directory))
    for path in (remote, f"{remote}/model.ckpt-120"):
        model = api.load(path)
        assert model.step == 120 and model.config.training.model_path == remote
        np.testing.assert_array_equal(model.logits([1, 2, 3]), local.logits([1, 2, 3]))
    with pytest.raises(InputError, match="ram://bucket/nothing: neither"):
        api.load("ram://bucket/nothing")
