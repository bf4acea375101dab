"""Tokenizers from files and from the hub, and text in pieces."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import time
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from gpt_mesh.data import encoders, pieces
from gpt_mesh.data.encoders import Encoder, byte_level_bpe, load_encoder
from gpt_mesh.data.pieces import cut
from gpt_mesh.errors import InputError

SPECIAL = "a<|endoftext|>b<|padding|>"


# Encoding


def test_special_tokens_in_a_prompt_are_tokens(encoder: Encoder) -> None:
    a, b = encoder.encode("a"), encoder.encode("b")
    assert encoder.encode(SPECIAL) == [*a, 0, *b, 1]
    assert encoder.encode_batch([SPECIAL, "a"]) == [[*a, 0, *b, 1], a]


def test_special_tokens_in_data_are_text(encoder: Encoder) -> None:
    (ids,) = encoder.encode_documents([SPECIAL])
    assert not {0, 1} & set(ids)
    assert encoder.decode(ids) == SPECIAL
    assert encoder.encode(SPECIAL) != ids, "the other way of encoding is not affected"


def test_pickling_keeps_special_tokens_apart(encoder: Encoder) -> None:
    encoder.encode_documents([SPECIAL])
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy.encode_documents([SPECIAL]) == encoder.encode_documents([SPECIAL])
    assert copy.encode(SPECIAL) == encoder.encode(SPECIAL)
    assert copy.fingerprint == encoder.fingerprint


def test_decoding_shows_special_and_unknown_ids(encoder: Encoder) -> None:
    assert encoder.decode([0, *encoder.encode("x"), 1]) == "<|endoftext|>x<|padding|>"
    assert encoder.decode([1000, *encoder.encode("x y"), 2**31, 0]) == "\ufffdx y\ufffd<|endoftext|>"
    assert encoder.decode([]) == ""


def test_nothing_is_truncated_or_padded(encoder: Encoder) -> None:
    tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=10)
    assert Encoder(tokenizer, "x").encode("a b c d e") == encoder.encode("a b c d e")


# Loading


def test_every_way_to_name_a_tokenizer(encoder: Encoder, tokenizer_path: str, tmp_path: Path) -> None:
    encoder.tokenizer.model.save(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    for path in (tokenizer_path, str(Path(tokenizer_path).parent), str(tmp_path)):
        for pretrained in (False, True):
            loaded = load_encoder(path, pretrained=pretrained)
            assert loaded.encode(f"def x(): {SPECIAL}") == encoder.encode(f"def x(): {SPECIAL}")
            assert (loaded.eos_id, loaded.padding_id, loaded.n_vocab) == (0, 1, 1000)
    shutil.copy(tokenizer_path, tmp_path / "tokenizer.json")
    assert load_encoder(str(tmp_path)).fingerprint == encoder.fingerprint


def test_urls(encoder: Encoder, tokenizer_path: str) -> None:
    tf.io.gfile.makedirs("ram://tokenizers")
    with tf.io.gfile.GFile("ram://tokenizers/t.json", "w") as file:
        file.write(Path(tokenizer_path).read_text())
    assert load_encoder("ram://tokenizers/t.json").fingerprint == encoder.fingerprint


def gpt2_like(folder: Path, size: int) -> str:
    """A vocabulary laid out as GPT-2's: bytes, merges, end of text last."""
    folder.mkdir()
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"token{n}" for n in range(size - 257)), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return str(folder)


def test_gpt2_pads_with_the_id_after_its_vocabulary(tmp_path: Path) -> None:
    encoder = load_encoder(gpt2_like(tmp_path / "gpt2", 50257))
    assert (encoder.n_vocab, encoder.eos_id, encoder.padding_id) == (50257, 50256, 50257)
    assert encoder.encode("<|endoftext|>") == [50256]
    assert 50257 not in encoder.encode("<|padding|>")
    assert encoder.decode([50256, 50257]) == "<|endoftext|>\ufffd"


def test_no_id_is_guessed(tmp_path: Path) -> None:
    encoder = load_encoder(gpt2_like(tmp_path / "other", 300))
    assert (encoder.eos_id, encoder.padding_id) == (299, None)
    bare = Encoder(byte_level_bpe(models.BPE()), "bare")
    assert (bare.n_vocab, bare.eos_id, bare.padding_id) == (0, None, None)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.json", None, "no such tokenizer"),
        ("x.json", "{}", "is not a tokenizer"),
        ("x.json", "not json", "is not a tokenizer"),
        ("vocab.json", '{"a": 0}', "holds no tokenizer"),
    ],
)
def test_what_is_no_tokenizer(tmp_path: Path, name: str, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    path = tmp_path if name == "vocab.json" else tmp_path / name
    with pytest.raises(InputError, match=reason) as caught:
        load_encoder(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vocabulary", "merges"), [("{}", "a b c\n"), ('{"a": 0}', "a b\n"), ("[]", ""), ("no", ""), ("\xff", "")]
)
def test_damaged_vocabulary(tmp_path: Path, vocabulary: str, merges: str) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary, encoding="latin-1")
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(InputError, match=r"vocab\.json"):
        load_encoder(str(tmp_path))


def test_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^no-such-model: .*refused.*vocab.json and merges.txt") as caught:
        load_encoder("no-such-model", pretrained=True)
    assert time.monotonic() - start < 8
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        load_encoder("no-such-model", pretrained=True)


def swallowed(*_: object, **__: object) -> None:
    time.sleep(3)
    raise OSError("the name is not known")


def test_a_network_that_swallows_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the name of the hub is looked up, as behind some firewalls."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(encoders, "_HUB_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", swallowed)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^gpt2: .*no answer in time.*vocab.json and merges.txt"):
        load_encoder("gpt2", pretrained=True)
    assert time.monotonic() - start < 2.5


@pytest.mark.parametrize("name", ["no/such/model", "", "a model", "\n"])
def test_names_the_hub_cannot_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="nor a name the Hugging Face hub could have") as caught:
        load_encoder(name, pretrained=True)
    assert "\n" not in str(caught.value)


def test_hub_cache_needs_no_network(
    encoder: Encoder, tokenizer_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0" * 40
    folder = tmp_path / "models--someone--model"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    shutil.copy(tokenizer_path, folder / "snapshots" / commit / "tokenizer.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert load_encoder("someone/model", pretrained=True).fingerprint == encoder.fingerprint


# Cutting long documents

TEXT = st.text(
    st.sampled_from(" \n\t\r\x1c\u00a0\u2003\u180eab'sé🎉漢。ぁァ、！09²٣<|.") | st.characters(codec="utf-8"),
    max_size=60,
)


@given(TEXT, st.integers(1, 12))
@example("it's  \n\n x\n\n", 1)
def test_pieces_have_the_tokens_of_the_whole(encoder: Encoder, text: str, size: int) -> None:
    pieces = list(cut([text], size, "it"))
    assert encoder.splittable
    assert "".join(piece for piece, _ in pieces) == text
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]
    joined = [token for ids in encoder.encode_documents([piece for piece, _ in pieces]) for token in ids]
    assert joined == encoder.encode_documents([text])[0]


@given(TEXT, st.integers(1, 12), st.integers(1, 7))
def test_pieces_do_not_depend_on_the_blocks_read(text: str, size: int, block: int) -> None:
    blocks = [text[start : start + block] for start in range(0, len(text), block)]
    assert list(cut(blocks, size, "it")) == list(cut([text], size, "it"))


def test_pieces_are_about_as_long_as_asked() -> None:
    pieces = [piece for piece, _ in cut(["word " * 1000], 100, "it")]
    assert {len(piece) for piece in pieces[:-1]} <= set(range(100, 106))


@pytest.mark.parametrize("unit", ["a,", "漢字。", "ひらがな、", "1\t", "12.", "x=1;", "line\r"])
def test_text_without_spaces_is_cut_too(unit: str) -> None:
    assert max(len(piece) for piece, _ in cut([unit * 1000], 100, "it")) <= 100 + len(unit)


def test_what_cannot_be_cut_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LONGEST", 1000)
    assert list(cut(["a" * 1000], 100, "it")) == [("a" * 1000, True)]
    with pytest.raises(InputError, match=r"^it: goes on for 1,050 characters without"):
        list(cut(["a" * 50] * 30, 100, "it"))
    assert len(list(cut(["a" * 999 + "."] * 30, 100, "it"))) == 31


def test_other_tokenizers_are_not_cut(encoder: Encoder) -> None:
    def changed(**parts: object) -> Encoder:
        tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str())
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return Encoder(tokenizer, "changed")

    assert changed().splittable
    assert not changed(normalizer=normalizers.NFC()).splittable
    assert not changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)).splittable
    assert not changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)).splittable
    assert not changed(pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()).splittable
    for added, splittable in (("two words", False), ("one-word", False), ("word", True)):
        other = changed()
        other.tokenizer.add_tokens([added])
        assert Encoder(other.tokenizer, added).splittable == splittable
