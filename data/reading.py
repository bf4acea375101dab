"""The documents of a corpus as pieces of text, each told from the others, and those that are wanted picked out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gpt_mesh.data.digests import DIGEST_BYTES, DigestSet
from gpt_mesh.data.documents import joined
from gpt_mesh.data.sources import Source

_WHOLE = 1 << 20  # characters of the pieces that are put together again


class DocumentPlace(NamedTuple):
    """Which document: number of its source, number within the source, both from 0. Places compare in reading order."""

    source: int
    document: int


class Position(NamedTuple):
    """A token of a document, its separator included; `token` may be one past the last. Compares in reading order."""

    place: DocumentPlace
    token: int


class Origin(NamedTuple):
    """What is known of a document without encoding it.

    Attributes:
        place: where it is.
        held_out: it belongs to the evaluation set.
        duplicate: its text came before.
        digest: of its text, as it was read.
        null: it is a record without a text, which is only counted.
    """

    place: DocumentPlace
    held_out: bool
    duplicate: bool
    digest: bytes = b""
    null: bool = False


class Piece(NamedTuple):
    """Some text. origin: of the document that ends with it; None when its document goes on."""

    text: str
    origin: Origin | None


class Selection:
    """Decides of each document, in reading order, where it goes and whether it is still wanted.

    held_out_fraction: share of the documents that is held out, by a hash of their text: the same document always goes
    the same way, wherever it stands and whatever else there is. deduplicate: mark documents whose text came before.
    done: where an earlier run left off with the documents that are trained on, and those that are held out; of either
    kind only documents from there on are wanted (the one where it stopped included).
    """

    def __init__(
        self,
        held_out_fraction: float = 0.0,
        deduplicate: bool = False,
        done: tuple[Position | None, Position | None] = (None, None),
    ) -> None:
        self._limit = round(held_out_fraction * 2**64)
        self._seen = DigestSet() if deduplicate else None
        self._from = tuple(DocumentPlace(0, 0) if position is None else position.place for position in done)

    @property
    def first_source(self) -> int:
        """Sources before this one need not be read: all that they hold is done, and not needed to know duplicates."""
        if self._seen is not None:
            return 0
        return min(place.source for place in (self._from if self._limit else self._from[:1]))

    def wanted_early(self, place: DocumentPlace) -> bool | None:
        """Whether a document is wanted; None when that depends on its text."""
        answers = {place >= first for first in (self._from if self._limit else self._from[:1])}
        return answers.pop() if len(answers) == 1 else None

    def decide(self, place: DocumentPlace, digest: bytes, null: bool = False) -> Origin | None:
        """None when the document is not wanted. To be called once for every document, in order."""
        held_out = not null and int.from_bytes(digest[:8], "big") < self._limit
        duplicate = not null and self._seen is not None and not self._seen.add(digest)
        return Origin(place, held_out, duplicate, digest, null) if place >= self._from[held_out] else None


def read_corpus(
    sources: Sequence[Source],
    selection: Selection,
    *,
    size: int | None,
    progress: Callable[[int], object] = lambda _: None,
) -> Iterator[Piece]:
    """The wanted documents of `sources`, in order, in pieces of about `size` characters (None: each in one piece).

    `progress` is called with the number of bytes read since its last call. Where a document's text must be known to
    tell whether it is wanted, it is held in memory.
    """
    for number in range(len(sources)):
        source = sources[number]
        if number < selection.first_source:
            progress(source.size)
            continue
        document, held = 0, list[str]()
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        pieces = source.pieces(size or _WHOLE, progress)
        if size is None:
            pieces = ((text, True) for text in joined(pieces))
        for piece, ends in pieces:
            place, text = DocumentPlace(number, document), piece or ""
            digest.update(text.encode())
            wanted = selection.wanted_early(place)
            if not ends:
                if wanted:
                    yield Piece(text, None)
                elif wanted is None:
                    held.append(text)
                continue
            if (origin := selection.decide(place, digest.digest(), piece is None)) is not None:
                yield from (Piece(part, None) for part in held)
                yield Piece(text, origin)
            document, held = document + 1, []
            digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
