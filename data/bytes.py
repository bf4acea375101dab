"""How many bytes of text a token stands for, which turns nats per token into bits per byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from gpt_mesh.data.encoders import Encoder
from gpt_mesh.errors import InputError


def byte_lengths(encoder: Encoder) -> NDArray[np.int64]:
    """UTF-8 bytes of each token id: int64 [n_vocab], 0 for special tokens, which are no text, and for unused ids.

    Exact for byte-level BPE, where every token is a string of bytes: the sum over an encoded text is the length of that
    text in UTF-8 (a character may be split over tokens, so that decoding one token at a time would not tell). Raises
    InputError for a tokenizer of another kind.
    """
    added = encoder.tokenizer.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special} | {encoder.eos_id, encoder.padding_id}
    # Byte-level BPE writes each of the 256 bytes as one printable character (Radford et al., 2019).
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    table = np.zeros(encoder.n_vocab, np.int64)
    for token, number in encoder.tokenizer.get_vocab(with_added_tokens=True).items():
        if number in special:
            continue
        if number in added:
            table[number] = len(token.encode())
        elif alphabet.issuperset(token):
            table[number] = len(token)
        else:
            raise InputError(
                f"{encoder.source}: token {token!r} is not a string of bytes; bits per byte needs a byte-level BPE "
                "tokenizer"
            )
    return table
