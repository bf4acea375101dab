"""Tokenizers in SentencePiece's files (`tokenizer.model`), byte-pair encodings and unigram models, in the form of the
tokenizers library. Texts have the ids that the sentencepiece package gives them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gpt_mesh.data.merges import merges_of
from gpt_mesh.data.tokenizer_errors import library_errors
from gpt_mesh.data.tokenizer_folders import Saved
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

MAX_BYTES = 64 << 20
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how pieces write a space
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # SentencePiece.Type


def load_pieces(path: str) -> Saved:
    """The tokenizer of a SentencePiece model. Beside the params.json of a model in Meta's layout, texts begin with its
    beginning-of-text token, as there.

    Raises:
        InputError: the file is damaged, or of a kind that the tokenizers library does not have.
    """
    proto = _read(path)
    trainer = proto.trainer_spec
    if trainer.model_type not in (_UNIGRAM, _BPE) or trainer.treat_whitespace_as_suffix:
        raise InputError(
            f"{shown(path)}: is neither a BPE nor a unigram model that writes spaces before words, and cannot be read; "
            "convert it to a tokenizer.json"
        )
    bos, eos, pad = (
        one if 0 <= one < len(proto.pieces) else None for one in (trainer.bos_id, trainer.eos_id, trainer.pad_id)
    )
    with library_errors(shown(path)):
        tokenizer = _tokenizer(path, proto)
        if bos is not None and _is_metas(os.path.dirname(path)):
            name = proto.pieces[bos].piece
            tokenizer.post_processor = processors.TemplateProcessing(f"{name} $A", special_tokens=[(name, bos)])
    return Saved(tokenizer, () if eos is None else (eos,), pad)


def _is_metas(folder: str) -> bool:
    """Whether a model in Meta's layout is in the folder, or in one inside it, as Llama 1 and 2 come."""
    inside = (os.path.join(folder, name) for name in storage.list_folder(folder or "."))
    return any(storage.exists(os.path.join(place, "params.json")) for place in (folder, *inside))


def _tokenizer(path: str, proto: Any) -> Tokenizer:
    trainer, spec = proto.trainer_spec, proto.normalizer_spec
    kinds = [(piece.piece, piece.type) for piece in proto.pieces]
    own = sorted((token for token, kind in kinds if kind == _USER_DEFINED), key=len, reverse=True)
    tokenizer = Tokenizer(_bpe(path, proto, bool(own)) if trainer.model_type == _BPE else _unigram(proto))
    tokenizer.normalizer = _normalizer(path, spec, own)
    if own:
        never = [token for token, kind in kinds if kind not in (_NORMAL, _USER_DEFINED)]
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_stretches(own, never)), "isolated")
    fallback = [decoders.ByteFallback()] if trainer.byte_fallback else []
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), *fallback, decoders.Fuse(), *strip])
    control = [token for token, kind in kinds if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _read(path: str) -> Any:
    """The model, as its protobuf message. The package itself checks it."""
    try:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise InputError(
            f"{shown(path)}: is a SentencePiece model, which needs the packages sentencepiece and protobuf "
            f"({storage.reason(error)}); pip install 'sentencepiece>=0.2' protobuf"
        ) from error
    try:
        with storage.open_binary(path) as file:
            data = file.read(MAX_BYTES + 1)
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read: {storage.reason(error)}") from error
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined, unused-ignore]
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        proto.ParseFromString(data)
        if not any(piece.type == _NORMAL for piece in proto.pieces):
            raise ValueError("it has no pieces of text")
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except Exception as error:  # both raise classes of their own for damaged files
        raise InputError(
            f"{shown(path)}: is not a SentencePiece model, or damaged ({storage.reason(error)[:200]}); get the "
            "tokenizer again"
        ) from None
    return proto


def _stretches(own: Sequence[str], never: Sequence[str]) -> str:
    """A pattern for the stretches of text that are encoded by themselves: the user-defined symbols `own`, and the first
    character of a piece `never` that text may not be made of, where it would be a whole stretch.
    """
    alone = "|".join(map(re.escape, own))
    cut = (rf"{re.escape(token[0])}(?={re.escape(token[1:])}(?:\z|{alone}))" for token in never if len(token) > 1)
    return rf"{alone}|(?:\A|(?<={alone}))(?:{'|'.join(cut)})"


def _normalizer(path: str, spec: Any, own: Sequence[str]) -> Any:
    """What is done to text first. `own`: the model's user-defined symbols, which it does not change.

    Raises:
        InputError: it would change one of them.
    """
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    space = SPACE if spec.escape_whitespaces else " "
    steps.append(normalizers.Replace(" ", space))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{space}+\z"), ""))
    changed = next((token for token in own if normalizers.Sequence(steps).normalize_str(token) != token), None)
    if changed is not None:
        raise InputError(
            f"{shown(path)}: has the user-defined symbol {changed!r}, which its own normalisation of text changes, and "
            "cannot be read; convert it to a tokenizer.json"
        )
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(space))
    return normalizers.Sequence(steps)


def _bpe(path: str, proto: Any, whole: bool) -> models.BPE:
    """The pair whose piece has the largest score is merged first. `whole`: a stretch of text that is a piece is that
    piece.
    """
    order = {piece.piece: -piece.score for piece in proto.pieces if piece.type == _NORMAL}
    merges = merges_of(order)
    if merges is None:
        raise InputError(
            f"{shown(path)}: has pieces of hundreds of characters, as no vocabulary has; get the tokenizer again"
        )
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(proto.pieces)},
        merges=merges,
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=whole,
    )


def _unigram(proto: Any) -> models.Unigram:
    """Pieces that text may not be made of get a score with which any other way to write them is better."""
    least = min(piece.score for piece in proto.pieces if piece.type == _NORMAL)
    longest = max(len(piece.piece) for piece in proto.pieces)
    never = longest * min(least, 0.0) - 1000.0
    scores = {_USER_DEFINED: 0.0}
    pieces = [
        (piece.piece, piece.score if piece.type == _NORMAL else scores.get(piece.type, never)) for piece in proto.pieces
    ]
    return models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)
