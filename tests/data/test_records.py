"""Records with roles, from files to tokens of which some are learned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from gpt_mesh.config import parse_config
from gpt_mesh.data import create_tfrecords
from gpt_mesh.data.corpus import load_corpus
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.marks import unmarked
from gpt_mesh.inputs import TrainingData
from tests.support.tokenizers import byte_level

CHAT = ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello<|im_end|>", "\n")
QUESTION, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
WITH_INPUT = (CHAT[0].replace("Hi", "Hi\n\nthere"), *CHAT[1:])
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "byte-level-bpe.tokenizer.json"
    byte_level().save(str(path))
    return path


def encode(folder: Path, tokenizer: Path, rows: list[Any] | Path, *flags: Any) -> int:
    source = rows if isinstance(rows, Path) else folder / "rows.jsonl"
    if isinstance(rows, list):
        source.write_text("\n".join(map(json.dumps, rows)))
    given = ["--input_dir", source, "--encoder_path", tokenizer, "--name", "d", "--output_dir", folder / "encoded"]
    return create_tfrecords.main([str(x) for x in (*given, "--processes", 1, *flags)])


def records(folder: Path, tokenizer: Path) -> list[list[tuple[str, bool]]]:
    """Each record as stretches of text, and whether they are learned."""
    encoder = load_encoder(str(tokenizer))
    corpus = load_corpus(sorted(map(str, (folder / "encoded").glob("d_*.tfrecords"))), progress=False)
    found = []
    for ids in corpus.read_tokens(np.arange(len(corpus))):
        runs = np.split(ids, np.flatnonzero(np.diff(ids >= 0)) + 1)
        found.append([(encoder.decode(unmarked(run).tolist()), bool(run[0] >= 0)) for run in runs])
    return found


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("messages", {"messages": [QUESTION, ANSWER]}, CHAT),
        ("messages", {"messages": [QUESTION, {**ANSWER, "content": [{"type": "text", "text": "Hello"}]}]}, CHAT),
        ("messages", SHAREGPT, CHAT),
        ("completion", {"prompt": "Hi", "completion": "Hello"}, CHAT),
        ("completion", {"prompt": [QUESTION], "completion": [ANSWER]}, CHAT),
        ("instruction", {"instruction": "Hi", "input": "", "output": "Hello"}, CHAT),
        ("instruction", {"instruction": "Hi", "input": "there", "output": "Hello"}, WITH_INPUT),
    ],
)
def test_kinds_of_records(kind: str, row: Any, expected: tuple[str, ...], tokenizer: Path, tmp_path: Path) -> None:
    assert encode(tmp_path, tokenizer, [row], "--records", kind, "--chat_template", "chatml") == 0
    assert records(tmp_path, tokenizer) == [[(expected[0], False), (expected[1], True), (expected[2], False)]]


def test_a_prompt_and_a_completion_need_no_template(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "Hi, ", "completion": "you"}]
    assert encode(tmp_path, tokenizer, rows, "--records", "completion") == 0
    assert records(tmp_path, tokenizer) == [[("Hi, ", False), ("you<|endoftext|>", True)]]
    assert "what is learned between « and »:\nHi, «you<|endoftext|>»" in capsys.readouterr().err


@pytest.mark.parametrize("chat", [False, True])
def test_preferences_are_two_records(chat: bool, tokenizer: Path, tmp_path: Path) -> None:
    flags = ["--chat_template", "chatml"] if chat else []
    row = {"prompt": "Hi", "chosen": "you", "rejected": "they"}
    assert encode(tmp_path, tokenizer, [row], "--records", "preference", *flags) == 0
    before, end = (CHAT[0], "<|im_end|>") if chat else ("Hi", "<|endoftext|>")
    after = [("\n", False)] if chat else []
    expected = [[(before, False), (f"{side}{end}", True), *after] for side in ("you", "they")]
    assert records(tmp_path, tokenizer) == expected


def test_a_label_makes_one_side(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": "you", "label": label} for label in (True, False)]
    assert encode(tmp_path, tokenizer, rows, "--records", "kto") == 0
    text, nothing = [("Hi", False), ("you<|endoftext|>", True)], [("<|endoftext|>", False)]
    assert records(tmp_path, tokenizer) == [text, nothing, nothing, text]


def test_columns_of_parquet(tokenizer: Path, tmp_path: Path) -> None:
    table = pa.table({"other": [1, 2], "messages": [[QUESTION, ANSWER]] * 2})
    parquet.write_table(table, tmp_path / "rows.parquet")
    flags = ("--records", "messages", "--chat_template", "chatml")
    assert encode(tmp_path, tokenizer, tmp_path / "rows.parquet", *flags) == 0
    assert records(tmp_path, tokenizer) == [[(CHAT[0], False), (CHAT[1], True), (CHAT[2], False)]] * 2
    wrong = encode(tmp_path, tokenizer, tmp_path / "rows.parquet", "--records", "kto", "--overwrite")
    assert wrong == 1


def test_long_conversations_are_cut_after_an_answer(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"role": "assistant", "content": "Hello " * 50}
    conversations = [[QUESTION, ANSWER, QUESTION, long], [QUESTION, long], [QUESTION, ANSWER]]
    rows = [{"messages": messages} for messages in conversations]
    flags = ("--records", "messages", "--chat_template", "chatml", "--maximum_size", 100)
    assert encode(tmp_path, tokenizer, rows, *flags) == 0
    whole = [(CHAT[0], False), (CHAT[1], True), (CHAT[2], False)]
    assert records(tmp_path, tokenizer) == [whole, whole]
    said = capsys.readouterr().out
    assert re.search(r"- cut off after an answer \(--maximum_size\) +\d+ tokens", said)
    assert re.search(r"- longer than --maximum_size 100 +1\n", said)


UNUSABLE = [
    ("messages", {"messages": [QUESTION]}, "has no message of the assistant"),
    ("messages", {"messages": [QUESTION, {"role": "assistant", "content": " "}]}, "message 2 is an empty answer"),
    ("completion", {"prompt": "Hi", "completion": ""}, "its completion is empty"),
    ("preference", {"prompt": "Hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
]


@pytest.mark.parametrize(("kind", "row", "words"), UNUSABLE)
def test_what_cannot_be_learned_is_refused_or_counted(
    kind: str, row: Any, words: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {
        "messages": {"messages": [QUESTION, ANSWER]}, "completion": {"prompt": "Hi", "completion": "you"},
        "preference": {"prompt": "Hi", "chosen": "a", "rejected": "b"},
    }[kind]  # fmt: skip
    flags = ("--records", kind, "--chat_template", "chatml")
    assert encode(tmp_path, tokenizer, [good, row], *flags) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/rows.jsonl: line 2: ") and words in last and "--skip_unusable" in last
    assert encode(tmp_path, tokenizer, [good, row], *flags, "--skip_unusable", "--overwrite") == 0
    assert re.search(r"documents read +2\n- [a-z ]+ +1\n= documents written +1\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("row", "flags", "words"),
    [
        ({"messages": [QUESTION]}, "", "name the field with --text_key, or give --records messages"),
        ({"text": "x"}, "--records messages", "has text, and --records messages needs messages or conversations"),
        ({"messages": [QUESTION, ANSWER]}, "--records messages", "has no chat template, which records of"),
        ({"messages": "Hi"}, "--records messages", "messages must be a list of messages, each with a role"),
        ({"messages": [{"role": "user", "content": 1}]}, "--records messages", "is no string but int"),
        ({"prompt": "a", "completion": "b", "label": 3}, "--records kto", "label = '3': must be true"),
        ({"text": "x"}, "--chat_template chatml", "--chat_template: goes with --records of another kind than text"),
        ({"messages": [QUESTION, ANSWER]}, "--records messages --mode chunks", "goes with --records text only"),
        ({"messages": [ANSWER, ANSWER]}, "--records messages --chat_template mistral", "roles must alternate"),
    ],
)
def test_mistakes_are_one_line(
    row: Any, flags: str, words: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(tmp_path, tokenizer, [row], *flags.split()) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and words in last, last


def test_windows_hold_whole_records_and_mark_where_they_begin(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Hi " * n, "completion": "you"} for n in range(1, 30)]
    config = tmp_path / "dataset_configs" / "d.json"
    assert encode(tmp_path, tokenizer, rows, "--records", "completion", "--write_dataset_config", config) == 0
    keys = {"n_ctx": 95, "n_vocab": 300, "n_layer": 1, "attention_types": [[["global"], 1]], "objective": "sft",
            "model_path": "unused", "n_embd": 8, "n_head": 1, "lr": 1, "train_batch_size": 1, "train_steps": 1}
    seen: dict[str, set[bytes]] = {}
    for mode in ("documents_packed", "documents_padded"):
        parsed = parse_config(keys | {"datasets": [["d", 1, mode, 1.0]]}, str(tmp_path / "m.json"), tmp_path)
        data = TrainingData(parsed, progress=False)
        count = data._sources[0].per_epoch
        assert count == 29 if mode == "documents_padded" else 15 <= count < 20
        batch = data.batch(0, count)
        np.testing.assert_array_equal(batch[3:5], TrainingData(parsed, progress=False).batch(3, 2))
        begins = (np.maximum(batch, ~batch) >> 30) > 0
        assert begins[:, 0].all() and not (batch[begins] >= 0).any()
        pairs = zip(batch, begins, strict=True)
        samples = [sample for row, at in pairs for sample in np.split(row, np.flatnonzero(at)[1:])]
        seen[mode] = {unmarked(sample).astype(np.int32).tobytes() for sample in samples if (sample >= 0).any()}
        assert len(seen[mode]) == 29
    assert seen["documents_packed"] == seen["documents_padded"]
