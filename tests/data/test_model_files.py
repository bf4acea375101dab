"""Tokenizers in SentencePiece's and tiktoken's files: the packages' ids, and one line for damaged files."""

from __future__ import annotations

import json
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from gpt_mesh.data import tiktoken_files
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.tiktoken_files import llama_3, qwen
from gpt_mesh.errors import InputError
from tests.support.model_files import ids_by_rank, train_pieces, trained_ranks, write_ranks

EDGES = ["", " ", "   ", " a", "a ", "  a  b ", "\n", "a\nb", "<s>", "a</s>b", "<unk>", "<0x0A>", "\x00a", "中é😀\t"]


@pytest.fixture(scope="module")
def corpus(sources: list[str]) -> list[str]:
    return [line for source in sources[:8] for line in Path(source).read_text().splitlines()]


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    rng = random.Random(0)
    made = ["".join(rng.choice("abe  \n0123'st中é😀_.") for _ in range(60)) for _ in range(50)]
    return [*EDGES, *made, *corpus[:100], "\n".join(corpus[100:140])]


# SentencePiece


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"byte_fallback": False},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"user_defined_symbols": ["<sep>", "::"], "control_symbols": ["<ctl>"]},
        {"user_defined_symbols": ["<sep>", "::"], "add_dummy_prefix": False},
    ],
    ids=["llama", "unknown", "spaces", "no prefix", "nfkc", "symbols", "symbols, no prefix"],
)
def test_pieces_have_the_packages_ids(
    tmp_path: Path, corpus: list[str], texts: list[str], kind: str, settings: dict[str, Any]
) -> None:
    path = train_pieces(tmp_path / "tokenizer.model", corpus, kind=kind, **settings)
    judge = sentencepiece.SentencePieceProcessor(model_file=str(path))
    if "user_defined_symbols" in settings:
        texts = [*texts, "a<sep>b", "x::y <sep> <sep><s><sep> a", "<sep>", "<sep><ctl>::<0x0A><sep>"]
    encoder = load_encoder(str(path))
    wanted = [judge.encode(text) for text in texts]
    assert encoder.encode_documents(texts) == wanted
    assert (encoder.n_vocab, encoder.bos_id, encoder.eos_ids) == (judge.get_piece_size(), None, (judge.eos_id(),))
    if settings.get("byte_fallback", True):
        assert [encoder.decode(ids) for ids in wanted] == [judge.decode(ids) for ids in wanted]


def test_metas_folder_begins_texts(tmp_path: Path, corpus: list[str]) -> None:
    path = train_pieces(tmp_path / "tokenizer.model", corpus)
    (tmp_path / "params.json").write_text("{}")
    judge = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for where in (path, tmp_path):
        encoder = load_encoder(str(where))
        assert (encoder.bos_id, encoder.eos_ids) == (judge.bos_id(), (judge.eos_id(),)) == (1, (2,))
        assert encoder.tokenizer.encode("a b").ids == judge.encode("a b", add_bos=True)
        assert encoder.encode("a b") == judge.encode("a b"), "an encoder adds nothing by itself"
        assert encoder.encode("<s>a")[0] == 1, "a prompt may name special tokens"
        again = pickle.loads(pickle.dumps(encoder))
        assert (again.bos_id, again.eos_ids, again.padding_id) == (1, (2,), None)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "text"])
def test_damaged_pieces(tmp_path: Path, corpus: list[str], damage: str) -> None:
    path = train_pieces(tmp_path / "tokenizer.model", corpus)
    data = path.read_bytes()
    changed = {"cut": data[: len(data) // 2], "noise": data[:100] + bytes(range(256)) * 9, "empty": b"", "text": b"{}"}
    path.write_bytes(changed[damage])
    for where in (path, tmp_path):
        with pytest.raises(InputError, match=r"tokenizer\.model: is not a SentencePiece model, or damaged") as caught:
            load_encoder(str(where))
        assert "\n" not in str(caught.value)


def test_kinds_of_pieces_that_are_not_read(tmp_path: Path, corpus: list[str]) -> None:
    path = train_pieces(tmp_path / "tokenizer.model", corpus, kind="char")
    with pytest.raises(InputError, match="is neither a BPE nor a unigram model"):
        load_encoder(str(path))
    path = train_pieces(
        tmp_path / "other.model", corpus, normalization_rule_name="nmt_nfkc", user_defined_symbols=["\uff01"]
    )
    with pytest.raises(InputError, match="has the user-defined symbol"):
        load_encoder(str(path))


# tiktoken


@pytest.mark.parametrize("family", [llama_3(1256, scaled=True), qwen(1256)], ids=["llama 3", "qwen"])
def test_ranks_have_tiktokens_ids(
    tmp_path: Path, corpus: list[str], texts: list[str], family: tiktoken_files.Family
) -> None:
    ranks = trained_ranks(corpus, 1200)
    ranks |= {
        token: len(ranks) + i for i, token in enumerate([b" \xe4\xb8", b"ee  ", b"\n0123", b"st st"])
    }  # unreachable
    write_ranks(tmp_path / "tokenizer.model", ranks)
    settings: dict[str, Any] = {"pat_str": family.pattern, "special_tokens": family.special}
    settings |= {"eos_token": {"content": family.eos[0]}, "bos_token": family.bos}
    settings["add_bos_token"] = family.bos is not None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = load_encoder(str(tmp_path))
    wanted = [ids_by_rank(text, ranks, family.pattern) for text in texts]
    assert encoder.encode_documents(texts) == wanted
    assert [encoder.decode(ids) for ids in wanted] == texts
    assert encoder.n_vocab == max(family.special.values()) + 1
    assert encoder.bos_id == (None if family.bos is None else family.special[family.bos])
    assert encoder.eos_ids == (family.special[family.eos[0]],)
    end = family.special[family.eos[0]]
    assert encoder.encode(f"a{family.eos[0]}b") == [*encoder.encode("a"), end, *encoder.encode("b")]
    assert end not in encoder.encode_documents([f"a{family.eos[0]}b"])[0]
    assert encoder.keeps_bytes


def test_llama_3_is_known_by_its_ranks(tmp_path: Path) -> None:
    """Special tokens as Meta's tokenizer numbers them, and as transformers names those of Llama 3.1."""
    rng = random.Random(0)
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < 128_000:
        ranks.setdefault(rng.randbytes(3), len(ranks))
    write_ranks(tmp_path / "tokenizer.model", ranks)
    encoder = load_encoder(str(tmp_path))
    named = encoder.tokenizer.token_to_id
    assert (encoder.n_vocab, encoder.bos_id, encoder.eos_ids) == (128_256, 128_000, (128_001, 128_009))
    assert named("<|start_header_id|>") == 128_006 and named("<|reserved_special_token_250|>") == 128_255
    assert named("<|reserved_special_token_4|>") == 128_008 and named("<|reserved_special_token_5|>") == 128_010
    (tmp_path / "params.json").write_text('{"use_scaled_rope": true}')
    encoder = load_encoder(str(tmp_path))
    named = encoder.tokenizer.token_to_id
    assert (encoder.eos_ids, encoder.padding_id) == ((128_001, 128_008, 128_009), 128_004)
    assert named("<|python_tag|>") == 128_010 and named("<|reserved_special_token_247|>") == 128_255


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"YWI= 300 x", "line 301 is not a token in base64"),
        (b"YWI", "line 301 is not a token in base64"),
        (b"YWIx= 300", "line 301: YWIx= is not base64"),
        (b"YQ== 300", "line 301 has a token of an earlier line"),
        (b"eHh4eHg= 299", "two tokens have rank 299"),
        (b"eHh4eHg= 99999999999", "line 301 has rank 99999999999"),
        (b"eHh4eHg= 18000000", "line 301 has rank 18000000"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"eHh4" * 3000 + b" 300", "has tokens of hundreds of bytes"),
    ],
    ids=range(9),
)
def test_damaged_ranks(tmp_path: Path, corpus: list[str], line: bytes, problem: str) -> None:
    path = write_ranks(tmp_path / "x.tiktoken", dict(list(trained_ranks(corpus, 400).items())[:300]))
    path.write_bytes(path.read_bytes() + line + b"\n")
    (tmp_path / "tokenizer_config.json").write_text('{"pat_str": "."}')
    began = time.monotonic()
    with pytest.raises(InputError, match=problem) as caught:
        load_encoder(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and time.monotonic() - began < 10


def test_ranks_that_say_too_little(tmp_path: Path, corpus: list[str]) -> None:
    ranks = trained_ranks(corpus, 300)
    path, settings = write_ranks(tmp_path / "x.tiktoken", ranks), tmp_path / "tokenizer_config.json"
    with pytest.raises(InputError, match=r"only Llama 3's 128,000.* put a tokenizer_config\.json with pat_str"):
        load_encoder(str(path))
    for values, problem in (
        ({"pat_str": 5}, "pat_str must be a regular expression"),
        ({"pat_str": "("}, "pat_str: .*correct the expression"),
        ({"pat_str": ".", "special_tokens": {"<a>": -1}}, "special_tokens an object of ids"),
        ({"pat_str": ".", "special_tokens": {"<a>": 900, "<b>": 900}}, "two of them have the same id"),
        ({"pat_str": ".", "special_tokens": {"<a>": 5}}, "id 5 is a special token's and one of the file's ranks"),
        ({"pat_str": ".", "eos_token": "<a>"}, "eos_token = '<a>' is not one of special_tokens"),
    ):
        settings.write_text(json.dumps(values))
        with pytest.raises(InputError, match=problem):
            load_encoder(str(path))
    settings.write_text('{"pat_str": "."}')
    del ranks[b"a"]
    with pytest.raises(InputError, match="has no token for the byte 97"):
        load_encoder(str(write_ranks(path, ranks)))
