"""Tokenizers whose tokens are characters, or bytes."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from gpt_mesh.data.encoders import END_OF_TEXT, Encoder, byte_level_bpe

UNKNOWN = "<|unknown|>"


def character_encoder(texts: Iterable[str]) -> Encoder:
    """A tokenizer of the characters of these texts, sorted, after `<|endoftext|>` (0) and `<|unknown|>` (1).

    Any other character is unknown.
    """
    characters = sorted(set[str]().union(*texts))
    vocabulary = {token: number for number, token in enumerate([END_OF_TEXT, UNKNOWN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END_OF_TEXT, UNKNOWN])
    return Encoder(tokenizer, "a tokenizer of characters")


def byte_encoder() -> Encoder:
    """A tokenizer of UTF-8 bytes, after `<|endoftext|>` (0): any text round trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([END_OF_TEXT, *alphabet])}
    tokenizer = byte_level_bpe(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return Encoder(tokenizer, "a tokenizer of bytes")
