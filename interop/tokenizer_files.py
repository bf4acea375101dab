"""Reads and writes tokenizers in Hugging Face's files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import models

from gpt_mesh.config import DatasetConfig
from gpt_mesh.data.chat_template import SETTINGS_FILE, TEMPLATE_FILE, template_text
from gpt_mesh.data.encoders import PADDING, Encoder, holds_tokenizer, load_encoder
from gpt_mesh.data.special_tokens import special_tokens
from gpt_mesh.errors import InputError

WHOLE = "tokenizer.json"
# What a folder may hold beside it, for other programs.
EXTRAS = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    SETTINGS_FILE,
    TEMPLATE_FILE,
)


def find(places: Sequence[str]) -> Encoder | None:
    """The tokenizer in the first of these files and folders that has one; None: none has.

    Raises:
        InputError: it cannot be read.
    """
    found = (place for place in places if os.path.isfile(place) or holds_tokenizer(place))
    return next((load_encoder(place) for place in found), None)


def keep(encoder: Encoder, source: str, target: str) -> None:
    """Keep a tokenizer in the folder `target`, which is made: as a tokenizer.json, whatever form it came in, and with
    the other files of the folder `source`, if it came from one.
    """
    os.makedirs(target, exist_ok=True)
    _save(encoder, target)
    if os.path.isdir(source) and os.path.samefile(source, target):
        return
    for name in EXTRAS:
        if os.path.isfile(os.path.join(source, name)):
            shutil.copyfile(os.path.join(source, name), os.path.join(target, name))
        elif os.path.isfile(os.path.join(target, name)):
            os.remove(os.path.join(target, name))  # another tokenizer's


def _save(encoder: Encoder, folder: str) -> None:
    """Write its tokenizer.json. The library's own function would raise an Exception where the disk is full."""
    with open(os.path.join(folder, WHOLE), "w", encoding="utf-8") as file:
        file.write(encoder.tokenizer.to_str(pretty=True))


def check(encoder: Encoder, vocab_size: int, eos_ids: Sequence[int], source: str) -> None:
    """
    Raises:
        InputError: the tokenizer has more ids than the model, or lacks one of the tokens that end texts.
    """
    if encoder.n_vocab > vocab_size:
        raise InputError(
            f"{encoder.where}: has {encoder.n_vocab} tokens, but {source} says vocab_size = {vocab_size}; take the "
            "tokenizer that the model was trained with"
        )
    for eos_id in eos_ids:
        if not (0 <= eos_id < encoder.n_vocab and encoder.tokenizer.id_to_token(eos_id) is not None):
            raise InputError(
                f"{encoder.where}: has no token {eos_id}, which {source} names as eos_token_id; take the tokenizer "
                "that the model was trained with"
            )


def write(encoder: Encoder, folder: str, *, ids: TokenIds, n_ctx: int) -> None:
    """Write the files that `transformers.AutoTokenizer` loads: the same ids for the same text."""
    _save(encoder, folder)
    if isinstance(encoder.tokenizer.model, models.BPE):
        try:
            encoder.tokenizer.model.save(folder)  # vocab.json and merges.txt
        except Exception as error:  # the library raises Exception itself
            raise OSError(str(error)) from error
    special = named_tokens(encoder, ids)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "model_input_names": ["input_ids", "attention_mask"],  # GPT-Neo would add embeddings of token_type_ids
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    write_json(os.path.join(folder, SETTINGS_FILE), settings)
    write_json(os.path.join(folder, "special_tokens_map.json"), special)
    if template := template_text(encoder.source):
        with open(os.path.join(folder, TEMPLATE_FILE), "w", encoding="utf-8") as file:
            file.write(template)


@dataclass(frozen=True)
class TokenIds:
    """The ids of special tokens as config.json and generation_config.json name them.

    Attributes:
        bos: of the token that a text starts from: the one before each text, or the end of the text before.
        eos: one id, or a list of those that end a text.
        pad: the one that pads.
    """

    bos: int | None
    eos: int | list[int] | None
    pad: int | None

    def values(self) -> dict[str, Any]:
        """Keys of config.json."""
        return {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}


def token_ids(dataset: DatasetConfig, encoder: Encoder) -> TokenIds:
    """The special tokens of a model that was trained on a dataset."""
    special = special_tokens(dataset, encoder)
    eos: int | list[int] | None = list(special.eos_ids) if len(special.eos_ids) > 1 else special.eos_id
    pad = encoder.tokenizer.token_to_id(PADDING)
    if pad is None:  # GPT-2's 50257 is not in the vocabulary; its users pad with the end of text
        known = encoder.padding_id is not None and encoder.padding_id < encoder.n_vocab
        pad = encoder.padding_id if known else special.eos_id
    return TokenIds(special.prefix, eos, pad)


def named_tokens(encoder: Encoder, ids: TokenIds) -> dict[str, str]:
    """The special tokens that begin, end and pad texts, by the names that tokenizer_config.json has for them.

    A token is left out if the tokenizer treats it as text: transformers makes every token named here special, so text
    that contains it would get other ids, and decoding would drop it. config.json still names its id.
    """
    added = encoder.tokenizer.get_added_tokens_decoder()
    special = {number: token.content for number, token in added.items() if token.special}
    eos = ids.eos[0] if isinstance(ids.eos, list) else ids.eos
    unknown = getattr(encoder.tokenizer.model, "unk_token", None)
    unk = eos if unknown is None else encoder.tokenizer.token_to_id(unknown)
    named = {"bos_token": ids.bos, "eos_token": eos, "unk_token": unk, "pad_token": ids.pad}
    return {name: special[number] for name, number in named.items() if number in special}


def write_json(path: str, values: dict[str, Any]) -> None:
    """Write a JSON object as Hugging Face does."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
