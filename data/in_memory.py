"""Data that a program has in memory, as the files that training reads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config.messages import show
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.marks import marked
from gpt_mesh.data.megatron_output import PairWriter, id_type
from gpt_mesh.errors import InputError

# A text; ids; (prompt, completion) as texts; (ids, whether each is learned); or a row of a table of these.
Document: TypeAlias = str | Sequence[int] | NDArray[np.integer] | tuple[Any, Any] | Mapping[str, Any]
# Documents, or a single one: texts or rows in any iterable, ids [documents, n] or [n].
Data: TypeAlias = Iterable[Document] | Document

_PREFERENCES = "give rows with prompt, chosen and rejected, or with prompt, completion and label (true or false)"
_ROWS = "a row has `text`, `prompt` and `completion`, or `input_ids` (or `tokens`), with `loss_mask` or `labels` if any"


@dataclass(frozen=True)
class Part:
    """A stretch of a document: a text or ids [n], and whether each is learned: one answer, or one for each id."""

    content: str | NDArray[np.int64]
    learned: bool | NDArray[np.bool_] = True


def documents_of(data: Data, name: str, limit: int) -> list[list[Part]]:
    """The documents in `data`, in parts.

    Args:
        data: documents, as `Data` has them.
        name: of the argument, for messages.
        limit: tokens or characters to read from an iterator, which may be endless. Whatever has a length is read whole.

    Raises:
        InputError: something in it is no document.
    """
    documents: Any = [data] if isinstance(data, (str, Mapping)) or _is_ids(data) else data
    if isinstance(documents, bytes) or not isinstance(documents, Iterable):
        raise InputError(f"{name} = {show(type(data).__name__)}: must be texts or token ids, or rows of these")
    found: list[list[Part]] = []
    size = 0
    for number, document in enumerate(documents):
        parts = _parts(document, f"{name}[{number}]")
        found.append(parts)
        size += sum(len(part.content) for part in parts)
        if isinstance(data, Iterator) and size >= limit:
            break
    if not size:
        raise InputError(f"{name}: holds no token; give it text or token ids")
    return found


def preferences_of(data: Data, name: str) -> list[list[Part]]:
    """The preferences in rows as documents in parts, two for each row: the chosen text and the rejected one.

    Args:
        data: rows with `prompt`, `chosen` and `rejected`, or with `prompt`, `completion` and `label`; the text that
            such a row does not have is one token that is not learned.
        name: of the argument, for messages.

    Raises:
        InputError: something in it is no preference.
    """
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputError(f"{name} = {show(type(data).__name__)}: is no list of preferences: {_PREFERENCES}")
    found: list[list[Part]] = []
    for number, row in enumerate(data):
        found += _preference(row, f"{name}[{number}]")
    if not found:
        raise InputError(f"{name}: holds no preference; {_PREFERENCES}")
    return found


def _preference(row: Any, name: str) -> tuple[list[Part], list[Part]]:
    """The chosen text and the rejected one of a row."""
    if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str):
        has = ", ".join(itertools.islice(map(str, row), 8)) if isinstance(row, Mapping) else show(type(row).__name__)
        raise InputError(f"{name}: has {has or 'no keys'}, and is no preference: {_PREFERENCES}")
    prompt = Part(row["prompt"], False)
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        if row["chosen"] == row["rejected"]:
            raise InputError(f"{name}: chosen and rejected are equal; remove the row")
        return [prompt, Part(row["chosen"])], [prompt, Part(row["rejected"])]
    label = row.get("label")
    if not isinstance(row.get("completion"), str) or not isinstance(label, (bool, np.bool_)):
        raise InputError(f"{name}: has {', '.join(itertools.islice(map(str, row), 8))}; {_PREFERENCES}")
    text, nothing = [prompt, Part(row["completion"])], [Part(np.array([0]), False)]
    return (text, nothing) if label else (nothing, text)


def texts_of(documents: Iterable[list[Part]]) -> list[str]:
    """The texts in documents."""
    return [part.content for parts in documents for part in parts if isinstance(part.content, str)]


def is_marked(documents: Iterable[list[Part]]) -> bool:
    """Whether some token is not to be learned."""
    return not all(np.all(part.learned) for parts in documents for part in parts)


def encoded(documents: Sequence[list[Part]], encoder: Encoder | None, eos_id: int | None) -> list[NDArray[np.int32]]:
    """The ids of documents, int32 [n] each, those that are not learned marked (`data.marks`).

    Args:
        encoder: of texts; None: there are none.
        eos_id: ends each document that is a (prompt, completion); None: nothing does.
    """
    texts = texts_of(documents)
    assert encoder is not None or not texts
    ids = iter(encoder.encode_documents(texts)) if encoder is not None else iter(())
    found = []
    for parts in documents:
        pieces = []
        for part in parts:
            tokens = next(ids) if isinstance(part.content, str) else part.content
            pieces.append(marked(tokens, np.broadcast_to(part.learned, len(tokens))))
        if eos_id is not None and len(parts) > 1:
            pieces.append(np.array([eos_id], np.int32))
        found.append(np.concatenate(pieces))
    return found


def write(path: str, documents: Sequence[NDArray[np.int32]], n_vocab: int) -> None:
    """Write documents, int32 [n] each, as a pair of token files, `path` (a .bin) and its .idx."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    has_marks = any((ids < 0).any() for ids in documents)
    with PairWriter(path, np.dtype("<i4") if has_marks else id_type(n_vocab)) as writer:
        writer.add_all(documents)


def joined(documents: Sequence[NDArray[np.int32]], eos_id: int | None) -> NDArray[np.int32]:
    """All documents as one, with `eos_id` between neighbours if it is known and not there already."""
    parts: list[NDArray[np.int32]] = []
    for ids in documents:
        if eos_id is not None and parts and (not len(parts[-1]) or parts[-1][-1] != eos_id):
            parts.append(np.array([eos_id], np.int32))
        parts.append(ids)
    return np.concatenate(parts)


def _is_ids(value: Any) -> bool:
    """Whether this is one document of ids: [n]."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    return isinstance(value, (list, tuple, range)) and len(value) > 0 and isinstance(value[0], (int, np.integer))


def _ids(value: Any, name: str) -> NDArray[np.int64]:
    try:
        ids = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise InputError(f"{name}: neither a text nor ids of one document; {_ROWS}") from None
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        raise InputError(f"{name}: ids of type {ids.dtype} and shape {list(ids.shape)}; give integers [n]")
    if ids.size and not 0 <= ids.min() <= ids.max() < 2**31:
        raise InputError(f"{name}: ids from {ids.min()} to {ids.max()}; they must be from 0 to n_vocab - 1")
    return ids.astype(np.int64)


def _with_mask(value: Any, mask: Any, name: str) -> list[Part]:
    ids, learned = _ids(value, name), np.asarray(mask)
    if learned.shape != ids.shape or learned.dtype.kind not in "biuf":
        raise InputError(f"{name}: {len(ids)} ids with a mask of shape {list(learned.shape)}; give one answer an id")
    return [Part(ids, learned.astype(bool))]


def _parts(document: Any, name: str) -> list[Part]:
    """The parts of one document."""
    if isinstance(document, str):
        return [Part(document)]
    if isinstance(document, Mapping):
        return _row_parts(document, name)
    if isinstance(document, tuple) and len(document) == 2 and not _is_ids(document):
        first, second = document
        if isinstance(first, str) and isinstance(second, str):
            return [Part(first, False), Part(second)]
        return _with_mask(first, second, name)
    return [Part(_ids(document, name))]


def _row_parts(row: Mapping[str, Any], name: str) -> list[Part]:
    """The parts of a row, as tables of the Hugging Face hub have them."""
    if isinstance(row.get("text"), str):
        return [Part(row["text"])]
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        return [Part(row["prompt"], False), Part(row["completion"])]
    ids = next((row[key] for key in ("input_ids", "tokens") if key in row), None)
    if ids is None and {"chosen", "rejected"} <= row.keys():
        raise InputError(f"{name}: is a preference: learn from it with objective = dpo, kto or reward")
    if ids is None:
        raise InputError(f"{name}: has {', '.join(itertools.islice(map(str, row), 8)) or 'no keys'}; {_ROWS}")
    if "loss_mask" in row:
        return _with_mask(ids, row["loss_mask"], name)
    if "labels" in row:  # Hugging Face's trainers leave out labels of -100
        return _with_mask(ids, np.asarray(row["labels"]) >= 0, name)
    return [Part(_ids(ids, name))]
