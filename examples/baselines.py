"""What other methods reach on the held-out text, in bits per byte: compressors, and a unigram model of the tokens."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.data.encoders import Encoder


def gzip_bits(held_out: bytes) -> float:
    """`gzip -9` on the held-out text alone."""
    return _bits_per_byte(len(gzip.compress(held_out, 9, mtime=0)), held_out)


def xz_bits(held_out: bytes) -> float:
    """`xz -9` on the held-out text alone."""
    return _bits_per_byte(_xz_size(held_out), held_out)


def xz_bits_after(training: bytes, held_out: bytes) -> float:
    """`xz -9` on the held-out text once it has read the training text, as the model has: what a file with both is
    longer than one with the training text alone. The dictionary (64 MiB) holds all of it.
    """
    with ThreadPoolExecutor(2) as pool:  # lzma lets go of the interpreter
        both, alone = pool.map(_xz_size, (training + held_out, training))
    return _bits_per_byte(both - alone, held_out)


def unigram_bits(encoder: Encoder, training: Sequence[str], held_out: Sequence[str]) -> float:
    """Tokens drawn independently of each other, with the frequencies they have in the training text.

    Add-one counts (Laplace's rule), so that a token the training text lacks has a probability too. The same tokenizer
    as the model's; documents are encoded on their own, and their ends are not counted, as in the model's evaluation.
    """
    counts = _token_counts(encoder, training) + 1
    bits = -np.log2(counts / counts.sum())
    return float(_token_counts(encoder, held_out) @ bits) / sum(len(text.encode()) for text in held_out)


def uniform_bits(n_vocab: int, tokens: int, text_bytes: int) -> float:
    """Every token equally likely: where a model starts."""
    return float(tokens * np.log2(n_vocab)) / text_bytes


def _bits_per_byte(compressed_size: int, text: bytes) -> float:
    return 8 * compressed_size / len(text)


def _xz_size(text: bytes) -> int:
    return len(lzma.compress(text, preset=9))


def _token_counts(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.int64]:
    counts = np.zeros(encoder.n_vocab, np.int64)
    for start in range(0, len(texts), 32):  # few at a time: lists of Python numbers are large
        for ids in encoder.encode_documents(texts[start : start + 32]):
            counts += np.bincount(ids, minlength=encoder.n_vocab)
    return counts
