"""The bytes that tokens stand for, and how many: with these, nats per token become bits per byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.data.byte_alphabet import ALPHABET
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.errors import InputError


def token_bytes(encoder: Encoder) -> dict[int, bytes]:
    """The bytes of each token that has some of its own: of a byte-level vocabulary all but the added ones, of one with
    byte fallback those for single bytes. Parts of characters are only known by these.
    """
    if not encoder.byte_level:
        return {number: bytes([byte]) for number, byte in encoder.fallback_bytes.items()}
    added = encoder.tokenizer.get_added_tokens_decoder()
    return {
        number: bytes(ALPHABET[character] for character in token)
        for token, number in encoder.tokenizer.get_vocab(with_added_tokens=True).items()
        if number not in added and ALPHABET.keys() >= set(token)
    }


def byte_lengths(encoder: Encoder) -> NDArray[np.int64]:
    """UTF-8 bytes of each token id: int64 [n_vocab], 0 for special tokens, which are no text, and for unused ids.

    The sum over an encoded text is the length of that text in UTF-8.

    Raises:
        InputError: the tokenizer is not byte-level, or changes text before it encodes it, so that no such table exists.
    """
    if not encoder.keeps_bytes:
        raise InputError(
            f"{encoder.where}: its tokens do not have the bytes of the text: it is not byte-level, or it normalizes "
            "text or adds spaces; bits per byte needs a byte-level BPE that does neither"
        )
    added = encoder.tokenizer.get_added_tokens_decoder()
    table = np.zeros(encoder.n_vocab, np.int64)
    for number, data in token_bytes(encoder).items():
        table[number] = len(data)
    for number, token in added.items():
        table[number] = 0 if token.special else len(token.content.encode())
    for special in (encoder.bos_id, *encoder.eos_ids, encoder.padding_id):
        if special is not None and special < len(table):
            table[special] = 0
    return table
