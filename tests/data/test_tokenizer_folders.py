"""Tokenizers as transformers saves them, in parts or in one file: the ids are those that transformers gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gpt_mesh.data.encoders import TOKENIZER_FILE, load_encoder
from gpt_mesh.errors import InputError
from gpt_mesh.interop import tokenizer_files

TEXTS = ["hello  world", "  def f(x):\n\n  return 'é😀'", "<|endoftext|>a</s><s>b", "    x", "a newword <|sep|> b", ""]


def trained(special: list[str], corpus: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def write(folder: Path, name: str, values: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(values))


def gpt2(folder: Path, corpus: list[str]) -> None:
    trained(["<|endoftext|>"], corpus).model.save(str(folder))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False})
    write(folder, "added_tokens.json", {"<|sep|>": 400, "newword": 401})
    write(folder, "special_tokens_map.json", {"additional_special_tokens": ["<|sep|>"], "eos_token": "<|endoftext|>"})


def gpt2_spaced(folder: Path, corpus: list[str]) -> None:
    trained(["<|endoftext|>"], corpus).model.save(str(folder))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True})


def gpt_neo(folder: Path, corpus: list[str]) -> None:
    """As it is published: its class is that of the model."""
    trained(["<|endoftext|>"], corpus).model.save(str(folder))
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    write(folder, "tokenizer_config.json", {"add_prefix_space": False, "model_max_length": 2048, **named})
    write(folder, "config.json", {"model_type": "gpt_neo"})


def codegen(folder: Path, corpus: list[str]) -> None:
    trained(["<|endoftext|>"], corpus).model.save(str(folder))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "CodeGenTokenizer"})
    write(folder, "added_tokens.json", {" " * n: 431 - n for n in range(31, 1, -1)})


def opt(folder: Path, corpus: list[str]) -> None:
    trained(["<pad>", "<s>", "</s>", "<unk>"], corpus).model.save(str(folder))
    named = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, **named})
    write(folder, "config.json", {"model_type": "opt"})


def llama(folder: Path, corpus: list[str]) -> None:
    import sentencepiece

    (folder / "corpus").write_text("\n".join(corpus))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **named})
    write(folder, "config.json", {"model_type": "llama"})


@pytest.fixture(scope="module")
def corpus(sources: list[str]) -> list[str]:
    return [line for source in sources[:8] for line in Path(source).read_text().splitlines()]


@pytest.fixture(params=[gpt2, gpt2_spaced, gpt_neo, codegen, opt, llama], ids=lambda made: made.__name__)
def parts(request: pytest.FixtureRequest, tmp_path: Path, corpus: list[str]) -> Path:
    """A folder with a tokenizer in parts."""
    folder = tmp_path / "parts"
    folder.mkdir()
    make: Callable[[Path, list[str]], None] = request.param
    make(folder, corpus)
    return folder


def test_folders_of_published_kinds(parts: Path, tmp_path: Path) -> None:
    """In parts, saved again in one file, and kept by an import, which leaves its definition as it is."""
    from transformers import AutoTokenizer

    judge = AutoTokenizer.from_pretrained(str(parts), local_files_only=True)
    wanted = [judge(text, add_special_tokens=False).input_ids for text in TEXTS]
    encoder = load_encoder(str(parts))
    assert encoder.encode_batch(TEXTS) == [encoder.encode(text) for text in TEXTS] == wanted
    assert encoder.n_vocab == len(judge)
    assert [encoder.decode(ids) for ids in wanted] == [judge.decode(ids) for ids in wanted]
    judge.save_pretrained(str(tmp_path / "whole"))
    tokenizer_files.keep(encoder, str(parts), str(tmp_path / "kept"))
    for name in ("whole", "kept"):
        again = tokenizer_files.find([str(tmp_path / name)])
        assert again is not None and again.fingerprint == encoder.fingerprint
        assert again.encode_batch(TEXTS) == wanted


def test_a_folder_that_transformers_cannot_read(tmp_path: Path, corpus: list[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    opt(folder, corpus)
    (folder / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"folder: transformers cannot read its tokenizer .*name its tokenizer\.json"):
        load_encoder(str(folder))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "NoSuchTokenizer", "auto_map": {"AutoTokenizer": "x.y"}})
    with pytest.raises(InputError, match="transformers cannot read"):
        load_encoder(str(folder))


def test_a_package_that_is_missing_is_named(tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2(tmp_path, corpus)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs the package transformers .*pip install"):
        load_encoder(str(tmp_path))


def test_transformers_is_imported_for_such_folders_alone(
    tmp_path: Path, tokenizer_path: str, corpus: list[str]
) -> None:
    """Not for a tokenizer.json, GPT-2's two files, or the folder of a tokenizer that was trained here."""
    trained_here = Path(tokenizer_path).parent
    trained(["<|endoftext|>"], corpus).model.save(str(tmp_path))
    (tmp_path / "single").mkdir()
    shutil.copy(tokenizer_path, tmp_path / "single" / "tokenizer.json")
    shutil.copytree(trained_here, tmp_path / "here")
    write(tmp_path / "here", "config.json", {"model_type": "gpt2"})
    assert (tmp_path / "here" / TOKENIZER_FILE).exists()
    code = "import sys; from gpt_mesh.data.encoders import load_encoder\n"
    code += "for path in sys.argv[1:]: load_encoder(path)\n"
    code += "print(sorted({'transformers', 'torch', 'tensorflow'} & set(sys.modules)))"
    paths = [tokenizer_path, str(trained_here), str(tmp_path), str(tmp_path / "single"), str(tmp_path / "here")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    gpt2(tmp_path, corpus)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("['transformers']\n", "")


# Tokenizers at which the library fails


@pytest.fixture
def definition(tokenizer_path: str) -> dict[str, Any]:
    return dict(json.loads(Path(tokenizer_path).read_text()))


def test_damage_that_the_library_panics_at(tmp_path: Path, definition: dict[str, Any]) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**definition, "normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}))
    with pytest.raises(InputError, match=r"is not a tokenizer of the tokenizers library: Precompiled"):
        load_encoder(str(path))
    word = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": {"a": 0}}
    path.write_text(json.dumps({**definition, "model": {**word, "max_input_chars_per_word": 100}, "added_tokens": []}))
    with pytest.raises(InputError, match="the tokenizers library cannot use it"):
        load_encoder(str(path))


def test_a_decoder_that_panics_later(tmp_path: Path, definition: dict[str, Any]) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**definition, "decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9}}))
    with pytest.raises(InputError, match="the tokenizers library cannot use it"):
        encoder = load_encoder(str(path))
        encoder.decode(range(encoder.n_vocab))


def test_ids_that_no_vocabulary_has(tmp_path: Path, definition: dict[str, Any]) -> None:
    definition["model"]["vocab"]["huge"] = 2**31 - 1
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition))
    with pytest.raises(InputError, match=r"has a token of id 2147483647; ids must be less than 16,777,216"):
        load_encoder(str(path))


def test_a_mark_before_a_tokenizer(tmp_path: Path, tokenizer_path: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + Path(tokenizer_path).read_bytes())
    assert load_encoder(str(tmp_path / "tokenizer.json")).fingerprint == load_encoder(tokenizer_path).fingerprint
