"""Tokens that begin and end texts: where they come from, where they are put, and that several ends are ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_mesh.data import create_tfrecords
from gpt_mesh.data.corpus import load_corpus
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.special_tokens import SpecialTokens, special_tokens
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import EvaluationData, TrainingData
from tests.support.corpora import add_dataset, model_config, numbered_documents
from tests.support.model_files import train_pieces

BOS, EOS = 888_888, 999_999
WIDTH = 9


# From the tokenizer's files


@pytest.fixture
def llama(tmp_path: Path, sources: list[str]) -> Path:
    """A folder as transformers has Llama's, whose instruct models end texts with several tokens."""
    folder = tmp_path / "llama"
    folder.mkdir()
    corpus = [line for source in sources[:6] for line in Path(source).read_text().splitlines()]
    train_pieces(folder / "tokenizer.model", corpus, size=400)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "chat_template": "{{ messages }}", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [5, 2]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7, 12345, -1, None]}))
    return folder


def test_the_files_of_a_folder(llama: Path) -> None:
    from transformers import AutoTokenizer

    judge = AutoTokenizer.from_pretrained(str(llama))
    encoder = load_encoder(str(llama))
    assert encoder.eos_ids == (5, 2, 7), "those of the model come first, and unknown ids are left out"
    assert (encoder.bos_id, encoder.padding_id) == (1, 0)
    for text in ("import json", " a", "a\n\nb", "<s>a", ""):
        begun = SpecialTokens(encoder.bos_id, encoder.eos_ids).begun(encoder.encode(text))
        wanted = judge(text).input_ids
        assert begun == (wanted[1:] if text.startswith("<s>") else wanted), "a written one is not doubled"
    (llama / "generation_config.json").write_text("[1")
    with pytest.raises(InputError, match=r"generation_config\.json: is not JSON"):
        load_encoder(str(llama))


def test_a_dataset_config_goes_first(tmp_path: Path, llama: Path, tokenizer_path: str) -> None:
    add_dataset(tmp_path, "a", [[1] * 9], n_vocab=400, tokenizer_path=str(llama))
    encoder, path = load_encoder(str(llama)), tmp_path / "dataset_configs" / "a.json"

    def found(**keys: Any) -> SpecialTokens:
        path.write_text(json.dumps({**json.loads(written), **keys}))
        config = model_config(tmp_path, [["a", 1, "documents_random", 1.0]], n_vocab=400)
        return special_tokens(config.data.datasets[0].dataset, encoder)

    written = path.read_text()
    assert found() == SpecialTokens(None, (5, 2, 7)), "no token is put before texts unless the config says so"
    assert found(bos_id=1, eos_id=2) == SpecialTokens(1, (2, 5, 7))
    assert found(eos_id=9) == SpecialTokens(None, (9,)), "its own end is not one of the tokenizer's"
    assert found(eos_id=2, stop_token_ids=[]) == SpecialTokens(None, (2,))
    assert found(eos_id=9, stop_token_ids=[3, 9]) == SpecialTokens(None, (9, 3))
    for keys, message in (
        ({"stop_token_ids": [3, 400]}, "stop_token_ids = 400: outside the vocabulary"),
        ({"bos_id": 400}, "bos_id = 400: outside the vocabulary"),
        ({"stop_token_ids": 3}, "stop_token_ids = 3"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ):
        with pytest.raises(InputError, match=message):
            found(**keys)


# In data


def test_a_token_begins_each_document_of_a_sample(tmp_path: Path) -> None:
    documents = numbered_documents([9, 31, 12, 10, 25, 9, 14, 60, 11, 9, 17, 13])
    for mode, stitch in (("documents_random", 1), ("documents_random", 3), ("documents_fixed", 2)):
        name = f"{mode}{stitch}"
        add_dataset(tmp_path, name, documents, files=2, bos_id=BOS, eos_id=EOS)
        data = TrainingData(model_config(tmp_path, [[name, stitch, mode, 1.0]]), progress=False)
        owner = {token: number for number, document in enumerate(documents) for token in document}
        seen: set[int] = set()
        for window in data.batch(0, 300).tolist():
            numbers = list(dict.fromkeys(owner[token] for token in window if token < BOS))
            joined: list[int] = []
            for number in numbers:
                joined += ([EOS] if joined else []) + [BOS, *documents[number]]
            joined = [EOS, *joined, EOS, BOS]
            assert any(joined[i : i + WIDTH] == window for i in range(len(joined) - WIDTH + 1)), window
            seen |= {window[0], window[-1]}
        assert seen >= ({BOS} if mode == "documents_fixed" or stitch == 1 else {BOS, EOS})


@pytest.mark.parametrize("eos", [EOS, None])
def test_held_out_documents_follow_it(tmp_path: Path, eos: int | None) -> None:
    documents = numbered_documents([1, 2, 8, 9, 10, 16, 3, 40])
    add_dataset(tmp_path, "numbers", [[1] * 9], held_out=documents, bos_id=BOS, eos_id=eos)
    config = model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]])
    found, firsts = [], {document[0] for document in documents}
    for tokens, weights in EvaluationData(config, progress=False).batches(4):
        for row, counted in zip(tokens, weights > 0, strict=True):
            for place in np.flatnonzero(counted):
                found.append(row[place + 1])
                assert row[place] == (BOS if row[place + 1] in firsts else row[place + 1] - 1)
    assert found == [token for document in documents for token in document]


@pytest.mark.parametrize("eos", [EOS, None])
def test_a_masked_model_sees_it_between_documents(tmp_path: Path, eos: int | None) -> None:
    documents = numbered_documents([1, 2, 8, 9, 10, 16, 17, 3, 40, 7], first=10)
    add_dataset(tmp_path, "numbers", [[1] * 9], held_out=documents, bos_id=BOS, eos_id=eos)
    keys = {"mlm_training": True, "mlm_mask_id": 6}
    config = model_config(tmp_path, [["numbers", 1, "documents_random", 1.0]], **keys)
    joined: list[int] = []
    for document in documents:
        joined += [*([eos] if joined and eos else []), BOS, *document]
    seen = 0
    for tokens, weights in EvaluationData(config, packed=8, progress=False).batches(3):
        for row, counted in zip(tokens[:, 1:].tolist(), weights > 0, strict=True):
            if counted.any():
                begin = min(seen, len(joined) - 8)
                assert row == joined[begin : begin + 8]
                seen += 8
    assert len(joined) <= seen < len(joined) + 8


def test_encoding_with_it(tmp_path: Path, llama: Path, sources: list[str]) -> None:
    """Documents are stored without it, and the config names it; in chunks it is between documents."""
    (tmp_path / "text").mkdir()
    for number, source in enumerate(sources[:4]):
        (tmp_path / "text" / f"{number}.txt").write_text(Path(source).read_text()[:500])

    def encode(mode: str) -> tuple[list[list[int]], dict[str, Any]]:
        flags = ["--input_dir", tmp_path / "text", "--name", mode, "--output_dir", tmp_path / "out", "--mode", mode]
        flags += ["--encoder_path", llama, "--chunk_size", 100, "--processes", 1]
        assert create_tfrecords.main([*map(str, flags), "--write_dataset_config", str(tmp_path / f"{mode}.json")]) == 0
        corpus = load_corpus(sorted(map(str, (tmp_path / "out").glob(f"{mode}_*.tfrecords"))), progress=False)
        return [record.tolist() for record in corpus.read_tokens(np.arange(len(corpus)))], json.loads(
            (tmp_path / f"{mode}.json").read_text()
        )

    documents, config = encode("documents")
    assert (config["bos_id"], config["eos_id"], config["stop_token_ids"]) == (1, 5, [2, 7])
    assert not any({1, 5} & {*document} for document in documents)
    chunks, config = encode("chunks")
    assert (config["bos_id"], config["eos_id"]) == (1, 5)
    joined = [token for document in documents for token in [*document, 5, 1]]
    assert [token for chunk in chunks for token in chunk] == joined[: 100 * len(chunks)]
