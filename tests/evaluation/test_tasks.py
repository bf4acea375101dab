"""LAMBADA and WikiText from files in their published forms, against figures worked out token by token."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_mesh.config import EVAL_TASKS, Config, load_config, parse_config
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation import sources
from gpt_mesh.evaluation.lambada import Lambada
from gpt_mesh.evaluation.tasks import TASKS, make_task, tasks_of
from gpt_mesh.evaluation.wikitext import WikiText, articles, detokenize
from tests.support.models import enlarge_weights, make_engine, unoptimised_graphs
from tests.support.runs import Workspace

N_CTX = 24
PASSAGES = ["the message was sent by the message", "a header of " + "value " * 30 + "end", "return self"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's cache but the test's own."""
    monkeypatch.setenv("GPT_MESH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def config(workspace: Workspace) -> Config:
    layer = {"n_layer": 1, "attention_types": [[["local"], 1]], "n_ctx": N_CTX, "eval_batch_size": 3}
    return load_config(str(workspace.config("tasks", **layer)))


@pytest.fixture(scope="module")
def engine(config: Config) -> DeviceEngine:
    with unoptimised_graphs():
        engine = make_engine(config, compiled=False)
        engine.create_variables(training=False)
    enlarge_weights(engine)
    return engine


def jsonl(path: Path, rows: Sequence[Any], key: str = "text") -> str:
    path.write_text("".join(json.dumps({key: row}) + "\n" for row in rows))
    return str(path)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_lambada_is_about_the_whole_last_word(
    config: Config, engine: DeviceEngine, workspace: Workspace, tmp_path: Path
):
    """Word for word, from the logits."""
    encoder = load_encoder(str(workspace.tokenizer))
    wanted, right = [], []
    for passage in PASSAGES:
        head, word = passage.rsplit(" ", 1)
        context, target = (encoder.encode_documents([x])[0] for x in (head, f" {word}"))
        ids = [*context, *target][-(N_CTX + 1) :]
        found = log_softmax(engine.logits(np.array([ids[:-1]], np.int32)).numpy()[0])
        places = np.arange(len(ids) - 1)[-len(target) :]
        wanted.append(found[places, target].sum())
        right.append(all(found[places].argmax(-1) == target))
    task = Lambada(config, jsonl(tmp_path / "lambada_test.jsonl", [f"{text}\n" for text in PASSAGES]))
    metrics = task.run(engine)
    assert metrics["accuracy"] == np.mean(right)
    assert metrics["nll"] == pytest.approx(-np.mean(wanted), abs=1e-4)
    assert metrics["perplexity"] == pytest.approx(math.exp(-np.mean(wanted)), rel=1e-4)
    assert metrics["nll_stderr"] == pytest.approx(np.std(wanted, ddof=1) / math.sqrt(3), rel=1e-3)
    assert (metrics["passages"], metrics["truncated"]) == (3, 1)
    assert metrics["bytes"] == len(b" message end self")


def test_a_word_that_is_half_right_is_wrong(config: Config, engine: DeviceEngine, tmp_path: Path, monkeypatch) -> None:
    """Each token of it has to be the likeliest one."""
    task = Lambada(config, jsonl(tmp_path / "l.jsonl", ["to be or xq", "to be or xq"]))
    lengths = {len(word) for _, word, _ in task.items}
    assert lengths == {3}  # " x q" in some pieces

    def scores(tokens: np.ndarray) -> tuple[Any, Any]:
        import tensorflow as tf

        correct = np.ones_like(tokens[:, 1:], np.float32)
        labels = len(task.items[0][0]) + len(task.items[0][1]) - 1
        correct[0, labels - 2] = 0  # one in the middle of the first word; what comes before and after is right
        return tf.constant(correct * 0 - 1), tf.constant(correct)

    monkeypatch.setattr(engine, "score", scores)
    metrics = task.run(engine)
    assert metrics["accuracy"] == 0.5 and metrics["nll"] == 3.0


def test_lambada_in_other_published_forms(
    config: Config, engine: DeviceEngine, workspace: Workspace, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"domain": ["x"] * 3, "text": PASSAGES}), tmp_path / "test.parquet")
    encoder = load_encoder(str(workspace.tokenizer))
    (tmp_path / "tokens.json").write_text(json.dumps(encoder.encode_documents(PASSAGES)))
    lines = Lambada(config, jsonl(tmp_path / "l.jsonl", PASSAGES))
    assert Lambada(config, str(tmp_path / "test.parquet")).items == lines.items
    assert Lambada(config, str(tmp_path / "tokens.json")).items == lines.items


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "one word"}\n{"text": "word"}\n', r"passage 2 \('word'\) is one word"),
        ("a.jsonl", "", "holds no passage"),
        ("a.txt", "one word\nanother word\n", "passages are read from"),
        ("a.txt.gz", "", "passages are read from"),
        ("a.jsonl", '{"txt": "one word"}\n', "line 1"),
        ("a.json", "[[1, 2], [1, 100000]]", "passage 2 is no list of ids"),
    ],
)
def test_lambada_mistakes_are_one_line(config: Config, tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        Lambada(config, str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


WIKI = """ \n = Robert = \n \n Robert <unk> is an actor . He 's 1 @,@ 000 @-@ fold ( or so ) . \n = = Career = = \n
 In 2000 he was " said " to be N years old . \n = = = Late = = = \n ° C ; the players ' wages . \n \n = Second page = \n
 \n Short . \n"""


def test_articles_begin_at_their_headings() -> None:
    pages = list(articles(WIKI))
    assert [page.strip().split("\n")[0].strip() for page in pages] == ["= Robert =", "= Second page ="]
    assert "\n".join(pages) == WIKI.removeprefix(" \n")


def test_the_published_detokenisation() -> None:
    text = detokenize(next(iter(articles(WIKI))))
    for part in ("He's 1,000-fold (or so).\n", "== Career ==\n", '"said" to be 1 years old.', "=== Late ===\n"):
        assert part in text, part
    assert " \n" not in text and "\n " not in text


def by_hand(config: Config, engine: DeviceEngine, workspace: Workspace, stride: int) -> tuple[float, int]:
    """The total of a file, each token by itself with as much context as a window of that stride leaves it."""
    encoder = load_encoder(str(workspace.tokenizer))
    total, count = 0.0, 0
    for page in articles(WIKI):
        ids = [encoder.eos_id, *encoder.encode_documents([detokenize(page)])[0]]
        for place in range(1, len(ids)):
            number = max(0, -(-(place - N_CTX) // stride))  # the window that scores it
            end = min(N_CTX + number * stride, len(ids) - 1)
            context = ids[max(0, end - N_CTX) : place]
            padded = np.array([context + [0] * (N_CTX - len(context))], np.int32)  # one form to trace
            found = log_softmax(engine.logits(padded).numpy()[0, len(context) - 1])
            total, count = total - float(found[ids[place]]), count + 1
    return total, count


@pytest.mark.parametrize("stride", [None, 7])
def test_wikitext_by_words_and_bytes(
    config: Config, engine: DeviceEngine, workspace: Workspace, tmp_path: Path, stride: int | None
) -> None:
    (tmp_path / "wiki.test.raw").write_text(WIKI)
    task = WikiText(config, str(tmp_path / "wiki.test.raw"), stride=stride)
    assert task.facts.get("stride") == stride
    metrics = task.run(engine)
    nll, tokens = by_hand(config, engine, workspace, stride or N_CTX)
    pages = list(articles(WIKI))
    words = sum(len(re.split(r"\s+", page)) for page in pages)
    size = sum(len(page.encode()) for page in pages)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(nll / words), rel=1e-4)
    assert metrics["byte_perplexity"] == pytest.approx(math.exp(nll / size), rel=1e-4)
    assert metrics["bits_per_byte"] == pytest.approx(nll / size / math.log(2), rel=1e-4)
    assert metrics["nll"] == pytest.approx(nll / tokens, rel=1e-4)
    assert (metrics["articles"], metrics["words"], metrics["bytes"], metrics["tokens"]) == (2, words, size, tokens)
    assert metrics["detokenized_bytes"] == sum(len(detokenize(page).encode()) for page in pages)


def test_wikitext_in_its_published_files(config: Config, tmp_path: Path) -> None:
    """The archive, of which only the test text is read; Hugging Face's export by articles, and by lines."""
    (tmp_path / "wiki.test.tokens").write_text(WIKI)
    with zipfile.ZipFile(tmp_path / "wikitext-103-raw-v1.zip", "w") as archive:
        for part in ("train", "valid", "test"):
            archive.writestr(f"wikitext-103-raw/wiki.{part}.raw", WIKI if part == "test" else "no heading")
    jsonl(tmp_path / "pages.jsonl", list(articles(WIKI)), "page")
    jsonl(tmp_path / "lines.jsonl", [line + "\n" if line.strip() else "" for line in WIKI.split("\n")[:-1]])
    wanted = WikiText(config, str(tmp_path / "wiki.test.tokens")).items
    assert len(wanted) == 2
    for name in ("wikitext-103-raw-v1.zip", "pages.jsonl"):
        assert WikiText(config, str(tmp_path / name)).items == wanted, name
    lines = WikiText(config, str(tmp_path / "lines.jsonl")).items
    assert [item[:2] for item in lines] == [item[:2] for item in wanted]  # white space of empty lines is gone


# Where files come from


def test_a_missing_file_is_asked_for_by_name_and_place(config: Config, cache: Path) -> None:
    with pytest.raises(InputError, match="1,819,752 bytes") as caught:
        make_task(config, "lambada")
    assert f"there is no {cache}/lambada_test.jsonl; put https://openaipublic" in str(caught.value)
    with pytest.raises(InputError, match=r"task wikitext: there is no .*wikitext-103-raw-v1.zip"):
        tasks_of(parse(config, eval_tasks=["wikitext"]), validation=False)
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        make_task(config, "lambada", file="nowhere.jsonl")
    with pytest.raises(InputError, match="stride = 3: task lambada has no windows that slide"):
        make_task(config, "lambada", stride=3)
    with pytest.raises(InputError, match="stride = 25: must be from 1 to n_ctx = 24"):
        make_task(config, "wikitext", stride=25)
    with pytest.raises(InputError, match="task piqa: there is no such task; there are validation, lambada, wikitext"):
        make_task(config, "piqa")


def parse(config: Config, **keys: Any) -> Config:
    assert config.directory is not None
    return parse_config({**config.to_json(), **keys}, "tasks.json", config.directory)


def test_a_download_is_verified(config: Config, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = jsonl(tmp_path / "served.jsonl", PASSAGES)
    body = Path(served).read_bytes()
    right = sources.Published(("lambada_test.jsonl",), (f"file://{served}",), len(body), sources.digest(served))
    wrong = sources.Published(right.names, (f"file://{tmp_path}/none", *right.urls), right.size, "0" * 64)
    monkeypatch.setattr(Lambada, "published", wrong)
    with pytest.raises(InputError, match="not the published file") as caught:
        make_task(config, "lambada", download=True)
    assert f"put it at {cache}/lambada_test.jsonl, or name it with --file" in str(caught.value)
    assert not list(cache.glob("*"))
    monkeypatch.setattr(Lambada, "published", right)
    task = make_task(config, "lambada", download=True)
    assert task.facts["data_sha256"] == right.sha256
    assert (cache / "lambada_test.jsonl").read_bytes() == body
    assert make_task(config, "lambada").facts == task.facts  # from now on it is here


def test_encoded_items_are_kept_by_content_and_tokenizer(
    config: Config, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path / "l.jsonl", PASSAGES)
    first = Lambada(config, path)
    load = Lambada.load
    monkeypatch.setattr(Lambada, "load", lambda *_: pytest.fail("was encoded again"))
    assert Lambada(config, path).items == first.items
    monkeypatch.setattr(Lambada, "load", load)
    assert len(Lambada(config, jsonl(tmp_path / "l.jsonl", PASSAGES[:2])).items) == 2  # other content
    [kept, _] = sorted((cache / "encoded").iterdir(), key=lambda file: -file.stat().st_size)
    kept.write_text("[[1")  # cut off
    assert Lambada(config, jsonl(tmp_path / "l.jsonl", PASSAGES)).items == first.items


def test_nothing_is_kept_where_caching_is_off(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_MESH_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    Lambada(config, jsonl(tmp_path / "l.jsonl", PASSAGES))
    assert sources.folder() == str(tmp_path / "home" / "gpt-mesh")
    assert not (tmp_path / "home").exists()


def test_the_configs_own_lambada_file(config: Config, workspace: Workspace, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", PASSAGES)
    workspace.dataset("with_lambada", [[1] * 40] * 4, lambada_tokens_path=path)
    keys: dict[str, Any] = {"datasets": [["with_lambada", 1, "documents_random", 1.0]], "eval_tasks": ["lambada"]}
    [task] = tasks_of(parse(config, **keys), validation=False)
    assert task.facts["data_sha256"] == sources.digest(path)
    Path(path).unlink()
    with pytest.raises(InputError, match=r"lambada_tokens_path = .*: no such file; bring lambada_test"):
        tasks_of(parse(config, **keys), validation=False)


def test_a_masked_model_has_no_such_tasks(config: Config) -> None:
    with pytest.raises(InputError, match="task lambada asks how likely text is"):
        make_task(parse(config, mlm_training=True, mlm_mask_id=3, objective="masked"), "lambada")


def test_a_config_can_name_every_task_but_the_held_out_text() -> None:
    assert set(TASKS) == {"validation", *EVAL_TASKS}


def test_brackets_without_end_are_no_passages(tmp_path: Path, workspace: Workspace) -> None:
    path = tmp_path / "lambada.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="is nested too deeply"):
        Lambada.load(Lambada.__new__(Lambada), str(path), load_encoder(str(workspace.tokenizer)))
