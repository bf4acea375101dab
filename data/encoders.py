"""Tokenizers: text to ids and back.

An Encoder wraps one of Hugging Face's `tokenizers`: a byte-level BPE trained here, GPT-2's, or any other that library
can load.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from gpt_mesh.data.pieces import CUT
from gpt_mesh.data.sentencepiece_files import load_pieces
from gpt_mesh.data.tiktoken_files import RANKS, is_ranks, load_ranks
from gpt_mesh.data.tokenizer_errors import is_panic, library_errors
from gpt_mesh.data.tokenizer_folders import Saved, is_saved, load_saved, read_text
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
TOKENIZER_FILE = "byte-level-bpe.tokenizer.json"
GPT2 = "gpt2"

# Files a tokenizer folder may hold, first found first taken: one JSON, or a vocabulary with its merges.
_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer.json")
_VOCABULARY_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_HUB_SECONDS = 5.0
_LARGEST_VOCABULARY = 1 << 24
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"

# GPT-2 has no padding token. Published configs pad with the first id after its vocabulary.
_GPT2_VOCABULARY = 50257
_GPT2_END_OF_TEXT = 50256


class Encoder:
    """Text to token ids and back.

    It neither truncates nor pads, and adds no tokens that are not in the text.

    Attributes:
        tokenizer: of the tokenizers library.
        source: its path or name, for messages.
    """

    def __init__(self, tokenizer: Tokenizer, source: str, eos_ids: tuple[int, ...] = (), pad_id: int | None = None):
        """`eos_ids`, `pad_id`: ids that end and that pad texts, according to the files beside the vocabulary."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.source = source
        self._declared = eos_ids, pad_id

    @property
    def where(self) -> str:
        """The source as messages show it: a path, or a name on a hub."""
        return shown(self.source) if storage.exists(self.source) else self.source

    def __reduce__(self) -> tuple[type[Encoder], tuple[Any, ...]]:
        return Encoder, (self.tokenizer, self.source, *self._declared)  # _literal's special setting would be lost

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Special tokens written out in it, such as `<|endoftext|>`, become their ids."""
        with library_errors(self.where):
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """encode() for many texts, on every core (unless the environment has TOKENIZERS_PARALLELISM=false)."""
        return self._ids(self.tokenizer, texts)

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of text that is data. A special token written out in it stays text and is encoded letter by letter.

        Someone else's document must not be able to put an end of text, or padding, into a corpus by naming it.
        """
        return self._ids(self._literal, texts)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens written out. An id that no token has becomes U+FFFD.

        A model's vocabulary is often padded beyond its tokenizer's, so a sample may hold such ids.
        """
        texts = []
        for known, run in itertools.groupby(map(int, ids), key=self._known.__contains__):
            found = list(run)
            with library_errors(self.where):
                text = self.tokenizer.decode(found, skip_special_tokens=False) if known else _UNKNOWN * len(found)
            texts.append(text)
        return "".join(texts)

    @cached_property
    def n_vocab(self) -> int:
        """Size of the vocabulary, added tokens included: every id is smaller."""
        return max(self._known, default=-1) + 1

    @cached_property
    def bos_id(self) -> int | None:
        """Id that the tokenizer's post-processor puts before a text, as Llama's does; None: it puts none."""
        step = self._definition["post_processor"] or {}
        for one in step.get("processors", [step]):
            if one.get("type") == "TemplateProcessing":
                first = one["single"][0].get("SpecialToken") if one["single"] else None
                ids = one["special_tokens"][first["id"]]["ids"] if first else []
                return ids[0] if len(ids) == 1 else None
        return None

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end texts, the first of them documents: those that its files name, else that of `<|endoftext|>`."""
        if self._declared[0]:
            return self._declared[0]
        token = self.tokenizer.token_to_id(END_OF_TEXT)
        return () if token is None else (token,)

    @property
    def eos_id(self) -> int | None:
        """The first of `eos_ids`; None when there is none."""
        return self.eos_ids[0] if self.eos_ids else None

    @cached_property
    def padding_id(self) -> int | None:
        """Id of `<|padding|>`, or the one that its files name, or 50257 for GPT-2's vocabulary (where no token has it);
        None when there is none.
        """
        token = self.tokenizer.token_to_id(PADDING)
        if token is None and (self.n_vocab, self.eos_id) == (_GPT2_VOCABULARY, _GPT2_END_OF_TEXT):
            return _GPT2_VOCABULARY
        return self._declared[1] if token is None else token

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the tokenizer's definition."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    @cached_property
    def byte_level(self) -> bool:
        """Whether every token is a string of bytes, each written as one printable character, as in GPT-2's vocabulary.

        A character of a text may be spread over such tokens.
        """
        step = self._definition["decoder"] or {}
        steps = step.get("decoders", [step])
        return bool(steps) and steps[0].get("type") == "ByteLevel"

    @cached_property
    def fallback_bytes(self) -> dict[int, int]:
        """The byte of each token `<0xE2>`, with which SentencePiece's kind writes what its vocabulary lacks.

        A run of such tokens is decoded together: to its text if all of it is UTF-8, else to one U+FFFD each. Empty for
        other kinds.
        """
        step = self._definition["decoder"] or {}
        if not any(one.get("type") == "ByteFallback" for one in step.get("decoders", [step])):
            return {}
        ids = ((byte, self.tokenizer.token_to_id(f"<0x{byte:02X}>")) for byte in range(256))
        return {number: byte for byte, number in ids if number is not None}

    @cached_property
    def keeps_bytes(self) -> bool:
        """Whether the bytes of a text's tokens are the bytes of the text: it is byte-level, has all 256 of them, and
        neither normalizes text nor adds or drops any."""
        step = self._definition["pre_tokenizer"] or {}
        steps = step.get("pretokenizers", [step])
        keeping = (
            (one.get("type") == "ByteLevel" and not one.get("add_prefix_space"))
            or one.get("type") == "Digits"
            or (one.get("type") in ("Split", "Punctuation") and one.get("behavior") != "Removed")
            for one in steps
        )
        return (
            self.byte_level
            and self._definition["normalizer"] is None
            and all(keeping)
            and any(one.get("type") == "ByteLevel" for one in steps)
            and all(self.tokenizer.token_to_id(byte) is not None for byte in pre_tokenizers.ByteLevel.alphabet())
            and not any(token["lstrip"] or token["rstrip"] for token in self._definition["added_tokens"])
        )

    @cached_property
    def splittable(self) -> bool:
        """Whether a text cut where pieces.CUT says has the ids of its pieces, joined.

        True of byte-level BPE as GPT-2 has it: its pattern makes tokens of letters, of digits, of white space or of
        what is none of these, puts white space only at the start of a token, and looks only forward (Radford et al.
        2019; https://github.com/openai/gpt-2). Added tokens are matched before the pattern, so none of them may reach
        over such a cut either; special ones are not looked for in documents.
        """
        definition = self._definition
        step = definition["pre_tokenizer"] or {}
        plain = step.get("type") == "ByteLevel" and step.get("use_regex", True) and not step.get("add_prefix_space")
        return bool(
            plain
            and definition["normalizer"] is None
            and not any(token["lstrip"] or token["rstrip"] for token in definition["added_tokens"])
            and all(len(token["content"].split()) == 1 for token in definition["added_tokens"])
            and not any(CUT.search(token["content"]) for token in definition["added_tokens"] if not token["special"])
        )

    @cached_property
    def _definition(self) -> dict[str, Any]:
        return dict(json.loads(self.tokenizer.to_str()))

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def _literal(self) -> Tokenizer:
        with library_errors(self.where):
            tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.encode_special_tokens = True  # "encode" them: take them for text
        return tokenizer

    def _ids(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        with library_errors(self.where):
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def byte_level_bpe(model: models.BPE, *, nfkc: bool = False, prefix_space: bool = False) -> Tokenizer:
    """GPT-2's kind of tokenizer around `model`: by default any text round trips, as it is not changed.

    nfkc: text is brought into Unicode's form NFKC first. prefix_space: a space is put before text that begins with
    none, so that its first word has the token it has elsewhere.
    """
    tokenizer = Tokenizer(model)
    if nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def load_encoder(path: str, pretrained: bool = False) -> Encoder:
    """The tokenizer at `path`.

    Args:
        path: a tokenizer JSON, as train_tokenizer.py and the tokenizers library write it; a SentencePiece model
            (`.model`) or a file of tiktoken's ranks (`.tiktoken`, `.model`); or a folder: with one of these, with
            `vocab.json` and `merges.txt` of GPT-2's kind, or as transformers saves it, with settings and added tokens.
        pretrained: `path` may also be a name on the Hugging Face hub, such as `gpt2` (a file or folder of that name
            goes first).

    Raises:
        InputError: there is no such tokenizer, it cannot be read, or the hub cannot be reached.
    """
    if storage.is_folder(path):
        found = _from_folder(path)
    elif storage.exists(path):
        found = _from_file(path)
    elif pretrained:
        found = Saved(_from_json(_hub_file(path)))
    else:
        raise InputError(
            f"{shown(path)}: no such tokenizer; give a {TOKENIZER_FILE}, or a folder with vocab.json and merges.txt"
        )
    return _checked(Encoder(found.tokenizer, path, found.eos_ids, found.pad_id))


def holds_tokenizer(folder: str) -> bool:
    """Whether a folder has the files of a tokenizer."""
    names = set(storage.list_folder(folder))
    pairs = any(names >= {*pair} for pair in _VOCABULARY_FILES)
    return pairs or bool(names & {*_TOKENIZER_FILES}) or any(map(_is_model, names))


def _checked(encoder: Encoder) -> Encoder:
    """The encoder, tried: some damage shows only in use.

    Raises:
        InputError: the library fails, or an id is too large for any vocabulary.
    """
    if encoder.n_vocab > _LARGEST_VOCABULARY:
        raise InputError(
            f"{encoder.where}: has a token of id {encoder.n_vocab - 1}; ids must be less than "
            f"{_LARGEST_VOCABULARY:,}: get the tokenizer again"
        )
    with library_errors(encoder.where):
        ids = encoder.encode("A try.\n") + encoder.encode_documents(["A try.\n"])[0]
        encoder.decode(ids + sorted(encoder._known)[:3])
    return encoder


def _from_folder(folder: str) -> Saved:
    whole = any(storage.exists(f"{folder}/{name}") for name in _TOKENIZER_FILES)
    models_there = [] if whole else sorted(name for name in storage.list_folder(folder) if _is_model(name))
    for name in models_there:
        if is_ranks(f"{folder}/{name}"):
            return load_ranks(f"{folder}/{name}")
    if not storage.exists(f"{folder}/{TOKENIZER_FILE}") and is_saved(folder):
        return load_saved(folder)
    for name in _TOKENIZER_FILES:
        if storage.exists(f"{folder}/{name}"):
            return Saved(_from_json(f"{folder}/{name}"))
    for vocabulary, merges in _VOCABULARY_FILES:
        if storage.exists(f"{folder}/{vocabulary}") and storage.exists(f"{folder}/{merges}"):
            return Saved(_from_vocabulary(f"{folder}/{vocabulary}", f"{folder}/{merges}"))
    if models_there:
        return load_pieces(f"{folder}/{models_there[0]}")
    raise InputError(f"{shown(folder)}: holds no tokenizer; put {TOKENIZER_FILE} there, or vocab.json and merges.txt")


def _from_file(path: str) -> Saved:
    if _is_model(path):
        return load_ranks(path) if is_ranks(path) or path.endswith(RANKS) else load_pieces(path)
    return Saved(_from_json(path))


def _is_model(path: str) -> bool:
    """Whether the name is one that SentencePiece's or tiktoken's files have."""
    return path.endswith((".model", RANKS))


def _from_json(path: str) -> Tokenizer:
    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        reason = storage.reason(error)[:200]
        raise InputError(f"{shown(path)}: is not a tokenizer of the tokenizers library: {reason}") from error


def _from_vocabulary(vocabulary_path: str, merges_path: str) -> Tokenizer:
    vocabulary, merges = read_text(vocabulary_path), read_text(merges_path)
    rules = [line.rstrip("\r") for line in merges.split("\n") if not line.startswith("#version")]
    try:
        pairs = [(left, right) for left, right in (rule.split(" ") for rule in rules if rule)]
        tokenizer = byte_level_bpe(models.BPE(vocab=json.loads(vocabulary), merges=pairs))
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        reason = storage.reason(error)[:200]
        raise InputError(f"{vocabulary_path} and merges.txt: are not a byte-level BPE: {reason}") from error
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens([token for token in (END_OF_TEXT, PADDING) if token in known])
    return tokenizer


def _hub_file(name: str) -> str:
    """Path of the hub's `tokenizer.json` for `name`, from the local cache when it is there."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError

    remedy = "give a local folder with its vocab.json and merges.txt instead"
    try:
        return str(hf_hub_download(name, "tokenizer.json", local_files_only=True))
    except HFValidationError as error:
        raise InputError(
            f"{name!r}: neither a file here nor a name the Hugging Face hub could have; {remedy}"
        ) from error
    except Exception as error:  # not in the cache
        if constants.HF_HUB_OFFLINE:
            raise InputError(f"{name}: is not in the cache and HF_HUB_OFFLINE is set; unset it, or {remedy}") from error
    # The hub's client tries again for half a minute when there is no network: ask once ourselves.
    if reason := _unreachable(f"{constants.ENDPOINT}/{name}/resolve/main/tokenizer.json"):
        raise InputError(f"{name}: neither a file here nor to be had from {constants.ENDPOINT} ({reason}); {remedy}")
    try:
        return str(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # whatever the client raises is about this name
        raise InputError(
            f"{name}: no tokenizer.json of it on {constants.ENDPOINT} ({type(error).__name__}); {remedy}"
        ) from error


def _unreachable(url: str) -> str:
    """Why nothing answers at `url`; empty when something does. Takes _HUB_SECONDS at most."""
    reasons = ["no answer in time"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_HUB_SECONDS).close()
            reasons.append("")
        except urllib.error.HTTPError:
            reasons.append("")  # it answers; the client explains
        except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
            reasons.append(storage.reason(getattr(error, "reason", None) or error))

    # In a thread, as looking up a name in a network that drops packets knows no time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    return reasons[-1]
