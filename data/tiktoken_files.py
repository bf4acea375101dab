"""Tokenizers in tiktoken's files: a line for each token, with its bytes in base64 and its rank, which is its id.

Such a file lacks the pattern that splits text, and the special tokens. Both are known here for a few models, by the
number of ranks; for others, `tokenizer_config.json` beside the file gives them as tiktoken's `Encoding` takes them:
`pat_str`, and `special_tokens` with their ids.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gpt_mesh.data.byte_alphabet import characters
from gpt_mesh.data.merges import merges_of
from gpt_mesh.data.tokenizer_folders import Saved, read_object, read_text
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

RANKS = ".tiktoken"  # how names of such files end; Llama 3's is called tokenizer.model
MAX_BYTES = 64 << 20
MAX_RANK = 1 << 24
_LINE = re.compile(r"[A-Za-z0-9+/]+={0,2} \d+\r?")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Family:
    """What a file of ranks does not say.

    Attributes:
        pattern: a regular expression for the stretches of text that are encoded by themselves.
        special: ids of special tokens.
        bos: the token before each text; None: none.
        eos: the tokens that end texts, the one that ends documents first.
        pad: the token that pads.
        nfc: text is brought into Unicode's form NFC first.
    """

    pattern: str
    special: Mapping[str, int]
    bos: str | None = None
    eos: tuple[str, ...] = ()
    pad: str | None = None
    nfc: bool = False


def llama_3(first: int, *, scaled: bool) -> Family:
    """Llama 3's; `scaled`: Llama 3.1 and later, which name more of the special tokens."""
    names = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    if scaled:
        names |= {4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"}
    reserved = (number for number in range(256) if number not in names)
    names |= {number: f"reserved_special_token_{place}" for place, number in enumerate(reserved)}
    return Family(
        pattern=_SPLIT.replace("DIGITS", r"\p{N}{1,3}"),
        special={f"<|{names[number]}|>": first + number for number in range(256)},
        bos="<|begin_of_text|>",
        eos=("<|end_of_text|>", *(["<|eom_id|>"] if scaled else []), "<|eot_id|>"),
        pad="<|finetune_right_pad_id|>" if scaled else None,
    )


def qwen(first: int) -> Family:
    """Qwen's first generation."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
    return Family(
        pattern=_SPLIT.replace("DIGITS", r"\p{N}"),
        special={name: first + number for number, name in enumerate(names)},
        eos=("<|endoftext|>", "<|im_end|>"),
        nfc=True,
    )


def cl100k(first: int) -> Family:
    """OpenAI's cl100k_base."""
    names = {"<|endoftext|>": 1, "<|fim_prefix|>": 2, "<|fim_middle|>": 3, "<|fim_suffix|>": 4, "<|endofprompt|>": 20}
    return Family(
        pattern=_SPLIT.replace("DIGITS", r"\p{N}{1,3}"),
        special={name: first + place for name, place in names.items()},
        eos=("<|endoftext|>",),
    )


def is_ranks(path: str) -> bool:
    """Whether a file begins like one of tiktoken's."""
    try:
        with storage.open_binary(path) as file:
            line = file.read(4096).partition(b"\n")[0]
    except storage.errors():
        return False
    return _LINE.fullmatch(line.decode("latin-1")) is not None


def load_ranks(path: str) -> Saved:
    """The tokenizer of a file of ranks, with what the files beside it say.

    Raises:
        InputError: the file is damaged, or its model is not known and nothing beside it says how text is split.
    """
    where, ranks = shown(path), _read(path)
    family = _family(path, len(ranks))
    used = {family.special[name] for name in family.special} & set(ranks.values())
    if used:
        raise InputError(f"{where}: id {min(used)} is a special token's and one of the file's ranks; correct either")
    merges = merges_of(ranks)
    if merges is None:
        raise InputError(f"{where}: has tokens of hundreds of bytes, as no vocabulary has; get the tokenizer again")
    # ignore_merges: a stretch of text that is a token is never merged from others.
    tokenizer = Tokenizer(models.BPE(vocab=ranks | dict(family.special), merges=merges, ignore_merges=True))
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(family.pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in family.special])
    if family.bos is not None:
        begins = [(family.bos, family.special[family.bos])]
        tokenizer.post_processor = processors.TemplateProcessing(f"{family.bos} $A", special_tokens=begins)
    ends = tuple(family.special[name] for name in family.eos)
    return Saved(tokenizer, ends, None if family.pad is None else family.special[family.pad])


def _read(path: str) -> dict[str, int]:
    """The rank of each token, whose bytes are written as characters."""
    where, text = shown(path), read_text(path, MAX_BYTES)
    ranks: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if _LINE.fullmatch(line) is None:
            raise InputError(f"{where}: line {number} is not a token in base64 and its rank; get the tokenizer again")
        encoded, rank = line.split()
        if len(encoded) % 4:
            raise InputError(f"{where}: line {number}: {encoded[:40]} is not base64; get the tokenizer again")
        token = characters(base64.b64decode(encoded))
        if token in ranks or len(rank) > 8 or int(rank) >= MAX_RANK:
            problem = "a token of an earlier line" if token in ranks else f"rank {rank[:20]}"
            raise InputError(f"{where}: line {number} has {problem}; get the tokenizer again")
        ranks[token] = int(rank)
    if len(set(ranks.values())) < len(ranks):
        known: set[int] = set()
        twice = next(rank for rank in ranks.values() if rank in known or known.add(rank))  # type: ignore[func-returns-value]
        raise InputError(f"{where}: two tokens have rank {twice}; get the tokenizer again")
    missing = next((byte for byte in range(256) if characters(bytes([byte])) not in ranks), None)
    if missing is not None:
        raise InputError(f"{where}: has no token for the byte {missing}; it is incomplete: get the tokenizer again")
    return ranks


def _family(path: str, count: int) -> Family:
    """What the file lacks: from tokenizer_config.json beside it, or what is known of the model with that many ranks."""
    where, folder = shown(path), os.path.dirname(path)
    settings_path, model_path = os.path.join(folder, "tokenizer_config.json"), os.path.join(folder, "params.json")
    settings = read_object(settings_path) if storage.exists(settings_path) else {}
    if "pat_str" in settings:
        return _declared(settings, settings_path)
    if count == 128_000:
        scaled = storage.exists(model_path) and read_object(model_path).get("use_scaled_rope") is True
        return llama_3(count, scaled=scaled)
    if count == 151_643:
        return qwen(count)
    if count == 100_256:
        return cl100k(count)
    raise InputError(
        f"{where}: has {count:,} ranks, and only Llama 3's 128,000, Qwen's 151,643 and cl100k_base's 100,256 are "
        "known; put a tokenizer_config.json with pat_str and special_tokens beside it"
    )


def _declared(settings: Mapping[str, Any], source: str) -> Family:
    """The family that a tokenizer_config.json describes."""
    where = shown(source)
    pattern, special = settings["pat_str"], settings.get("special_tokens", {})
    ids = [*special.values()] if isinstance(special, dict) else [None]
    if not isinstance(pattern, str) or not all(type(one) is int and 0 <= one < MAX_RANK for one in ids):
        raise InputError(f"{where}: pat_str must be a regular expression, and special_tokens an object of ids")
    if len(set(ids)) < len(ids):
        raise InputError(f"{where}: special_tokens: two of them have the same id; correct one")
    try:
        Regex(pattern)
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{where}: pat_str: {storage.reason(error)[:200]}; correct the expression") from None
    named = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and (not isinstance(token, str) or token not in special):
            raise InputError(f"{where}: {name} = {str(token)[:40]!r} is not one of special_tokens; add it there")
        named[name] = token
    return Family(
        pattern=pattern,
        special=special,
        bos=named["bos_token"] if settings.get("add_bos_token") is True else None,
        eos=() if named["eos_token"] is None else (named["eos_token"],),
        pad=named["pad_token"],
    )
