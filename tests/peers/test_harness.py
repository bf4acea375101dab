"""lm-evaluation-harness gives our checkpoints the scores that its Hugging Face backend gives the same weights.

The tasks are those of the harness (LAMBADA, WikiText, multiple choice, generation) over files made here.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_mesh.config import load_config
from gpt_mesh.training import report
from tests.support.models import enlarge_weights, make_engine, unoptimised_graphs
from tests.support.outside import PEERS_PYTHON, ask, hugging_face_keys
from tests.support.runs import REPOSITORY, Workspace

pytestmark = pytest.mark.peers

TOLERANCE = 1e-4
N_CTX = 64
TASK = "dataset_path: json\ntest_split: test\ndataset_kwargs:\n  data_files:\n    test: {file}\n"
PUBLISHED = "from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer\n"
LAMBADA = """task: made_lambada
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
WIKITEXT = """task: made_wikitext
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: !function published.wikitext_detokenizer
process_results: !function published.process_results
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
CHOICE = """task: made_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
UNTIL = """task: made_until
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n", "e"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
WORDS = "def return import class self None message header policy string value list of the to in is for and or"


def text(seed: int, count: int) -> str:
    """Words in an order of their own."""
    words = WORDS.split()
    return " ".join(words[(seed * 7 + i * i * 3 + i) % len(words)] for i in range(count))


def write_tasks(folder: Path) -> dict[str, Path]:
    """Task files, and the published formats of two of them."""
    passages = [text(seed, 3 + 5 * seed) for seed in range(9)]  # the longest do not fit the context
    body = "\n".join(f" {text(7, 40)} @-@ 5 @,@ 000 ( it 's {text(i, 60)} ) . \n " for i in range(2))
    pages = [
        f" = First = \n \n{body}\n = = Part = = \n {text(3, 90)} ",
        f" = Second = \n \n {text(4, 30)} ° N , \n",
    ]
    questions: list[dict[str, Any]] = [
        {"question": text(i, 4 + 12 * i), "choices": [f" {text(i + j, 1 + j)}" for j in range(4)], "answer": i % 4}
        for i in range(6)
    ]
    files: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "lambada": (LAMBADA, [{"text": passage} for passage in passages]),
        "wikitext": (WIKITEXT, [{"page": page} for page in pages]),
        "choice": (CHOICE, questions),
        "until": (UNTIL, questions),
    }
    for name, (task, rows) in files.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(TASK.format(file=data) + task)
    (folder / "published.py").write_text(PUBLISHED)
    (folder / "wiki.test.raw").write_text(" \n" + "\n".join(pages))
    return {"lambada": folder / "lambada.jsonl", "wikitext": folder / "wiki.test.raw"}


@pytest.fixture(scope="module")
def answer(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("harness")
    path = workspace.config("harnessed", n_ctx=N_CTX, local_attention_radius=16, eval_batch_size=4)
    config = load_config(str(path))
    with unoptimised_graphs():
        engine = make_engine(config, compiled=False)
        engine.create_variables(training=False)
    enlarge_weights(engine, scale=0.15)
    report.prepare_directory(config)
    report.write_config(config)
    checkpoint = engine.save(config.training.model_path, 1, {})
    files = write_tasks(folder)
    job = {
        "config": str(path),
        "checkpoint": checkpoint,
        "model": hugging_face_keys(config.model),
        "tokenizer": str(workspace.tokenizer),
        "tasks": str(folder),
        "names": ["made_lambada", "made_wikitext", "made_choice", "made_until"],
        "files": {name: str(file) for name, file in files.items()},
    }
    found = ask("harness", job, folder)["answer"]
    parsed: dict[str, Any] = json.loads(found.tobytes())
    return parsed


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("made_lambada", {"perplexity", "acc"}),
        ("made_wikitext", {"word_perplexity", "byte_perplexity", "bits_per_byte"}),
        ("made_choice", {"acc", "acc_norm"}),
        ("made_until", {"exact_match"}),
    ],
)
def test_every_metric_is_that_of_the_hugging_face_backend(answer: dict, task: str, metrics: set[str]) -> None:
    ours, theirs = (numbers(answer[side]["metrics"][task]) for side in ("ours", "theirs"))
    assert {name.split(",")[0] for name in ours} >= metrics
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), [theirs[name] for name in ours], rtol=TOLERANCE, err_msg=str(ours))


@pytest.mark.parametrize("task", ["made_lambada", "made_wikitext", "made_choice", "made_until"])
def test_every_answer_is_that_of_the_hugging_face_backend(answer: dict, task: str) -> None:
    ours, theirs = (flat(answer[side]["samples"][task]) for side in ("ours", "theirs"))
    words = [[x for x in side if isinstance(x, str)] for side in (ours, theirs)]
    assert words[0] == words[1]
    values = [[float(x) for x in side if not isinstance(x, str)] for side in (ours, theirs)]
    np.testing.assert_allclose(values[0], values[1], rtol=TOLERANCE)
    assert len(set(ours)) > 1


def flat(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    return [leaf for item in value for leaf in flat(item)]


def test_our_own_tasks_are_the_harness_tasks(answer: dict) -> None:
    """`--eval --task` and the harness agree on the same files, WikiText from the raw file and from its articles."""
    theirs, alone = answer["theirs"]["metrics"], answer["alone"]
    lambada, wikitext = numbers(theirs["made_lambada"]), numbers(theirs["made_wikitext"])
    names = {"accuracy": "acc", "perplexity": "perplexity"}
    pairs = [(alone["lambada"][ours], lambada[f"{name},none"]) for ours, name in names.items()]
    assert alone["lambada"]["truncated"] > 0
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        pairs.append((alone["wikitext"][name], wikitext[f"{name},none"]))
    ours, theirs = zip(*pairs, strict=True)
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE)
    assert alone["wikitext"]["articles"] == 2 and alone["wikitext"]["tokens"] > 4 * N_CTX


def command(folder: Path, model_args: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """`python3 -m gpt_mesh.harness run`, as the documentation has it."""
    given = ["--model", "gpt_mesh", "--model_args", model_args, "--tasks", "made_choice", "--include_path", str(folder)]
    return subprocess.run(
        [str(PEERS_PYTHON), "-m", "gpt_mesh.harness", "run", *given, "--batch_size", "3", *flags],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_command_gives_what_the_harness_gives(answer: dict, workspace: Workspace, tmp_path: Path) -> None:
    write_tasks(tmp_path)
    run = workspace.root / "harnessed"
    done = command(tmp_path, f"pretrained={run}", "--output_path", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    assert "|made_choice|" in done.stdout and "PyTorch's" not in done.stderr
    [kept] = (tmp_path / "results").glob("*harnessed/results_*.json")
    found = json.loads(kept.read_text())["results"]["made_choice"]
    wanted = numbers(answer["ours"]["metrics"]["made_choice"])
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_mistakes_are_one_line(answer: dict) -> None:
    for said, wanted in zip(answer["mistakes"], (
        "model_args: name the model, such as config=demo",
        f"{REPOSITORY / 'configs' / 'nowhere.json'}: no such model config",
        "model_args dtype: unknown; use config and devices",
    ), strict=True):  # fmt: skip
        assert said.startswith(wanted) and "\n" not in said


def test_generating_more_than_the_model_reads_is_refused(answer: dict) -> None:
    """The harness's own backend refuses it too; 256 is what a task without the key asks for."""
    assert len(answer["without_room"]) == 2
    for said, count in zip(answer["without_room"], (256, N_CTX), strict=True):
        assert said.startswith(f"generation_kwargs: max_gen_toks = {count} leaves no room for a context: ")
        assert f"N below {N_CTX}" in said and "\n" not in said


def test_contexts_that_are_cut_are_counted_in_a_warning(answer: dict) -> None:
    rest = "1 of 2 contexts are too long for the model's 64 tokens and lose their start"
    assert answer["warnings"] == [f"generate_until: {rest}", f"loglikelihood: {rest}"]
    assert answer["no_warnings"] == []
