"""Small tokenizers in the files that models come with: SentencePiece's and tiktoken's."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gpt_mesh.data.byte_alphabet import ALPHABET


def train_pieces(path: Path, corpus: Sequence[str], *, size: int = 500, kind: str = "bpe", **settings: Any) -> Path:
    """Train a SentencePiece model at `path`, which ends with .model; by default of Llama's kind."""
    text = path.with_suffix(".txt")
    text.write_text("\n".join(corpus))
    llama: dict[str, Any] = {"byte_fallback": True, "normalization_rule_name": "identity"}
    llama["remove_extra_whitespaces"] = False
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(path.with_suffix("")), vocab_size=size, model_type=kind, num_threads=1,
        hard_vocab_limit=False, minloglevel=2, **llama | settings,
    )  # fmt: skip
    text.unlink()
    path.with_suffix(".vocab").unlink()
    return path


def trained_ranks(corpus: Sequence[str], size: int) -> dict[bytes, int]:
    """The ranks of a byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for pair in json.loads(tokenizer.to_str())["model"]["merges"]:
        ranks.setdefault(bytes(ALPHABET[character] for character in "".join(pair)), len(ranks))
    return ranks


def write_ranks(path: Path, ranks: Mapping[bytes, int]) -> Path:
    """Write a file of tiktoken's ranks."""
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


def ids_by_rank(text: str, ranks: Mapping[bytes, int], pattern: str) -> list[int]:
    """The ids of a text without special tokens, by tiktoken's rule: of each stretch that the pattern finds, merge the
    neighbours whose concatenation has the lowest rank, unless the whole stretch is a token.
    """
    import regex  # not in TPUEstimator's environment, where other tests import this file

    found: list[int] = []
    for stretch in regex.findall(pattern, text):
        whole = stretch.encode()
        parts = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while len(parts) > 1:
            merges = [(ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1)]
            rank, place = min(merges)
            if rank == 1 << 30:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        found += [ranks[part] for part in parts]
    return found
