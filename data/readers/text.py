"""Text: a file is a document, or each of its lines is."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import ClassVar

from gpt_mesh.data.readers.reader import Content, Documents, ReadContent, Reader, Reading
from gpt_mesh.errors import InputError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # a byte-order mark, decoded


class TextReader(Reader):
    """The whole file is one document, without a byte-order mark at its start."""

    name: ClassVar[str] = "text"
    endings: ClassVar[tuple[str, ...]] = (".txt",)

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        yield decoded(content.where, content.blocks, reading)


class LinesReader(Reader):
    """Each line is a document, with its line break; as lm_dataformat reads `.gz` files."""

    name: ClassVar[str] = "lines"

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        held: list[str] = []
        for text in decoded(content.where, content.blocks, reading):
            first, *rest = text.split("\n")
            held.append(first)
            for line in rest:
                yield ["".join(held), "\n"]
                held = [line]
        if last := "".join(held):
            yield [last]


def decoded(where: str, blocks: Iterable[bytes], reading: Reading, *, mark: bool = True) -> Iterator[str]:
    """Text of UTF-8 bytes, block by block.

    A NUL byte is no text either: UTF-16, binary files, and files that a full disk cut short are full of them.

    Args:
        where: what messages call the file.
        blocks: its bytes.
        reading: `errors` says what happens to bytes that are no text.
        mark: leave out a byte-order mark at the start.

    Raises:
        InputError: names the first byte that is no text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(reading.errors)
    read, begun = 0, not mark
    try:
        for block in blocks:
            nul = block.find(b"\0") if reading.errors == "strict" else -1
            part = block if nul < 0 else block[:nul]
            read += len(part)
            text = decoder.decode(part, final=nul >= 0)
            if nul >= 0:
                raise InputError(
                    f"{where}: byte {read} is NUL, as in UTF-16 or binary files; convert the file to UTF-8"
                    f"{reading.recommend('--errors replace')}"
                )
            if text and not begun:
                text, begun = text.removeprefix(_MARK), True
            yield text.replace("\0", _REPLACEMENT) if reading.errors == "replace" else text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # error.object also has the bytes that an earlier block left over.
        at = read - len(error.object) + error.start
        remedy = f"convert the file{reading.recommend('--errors replace')}"
        raise InputError(f"{where}: byte {at} is not UTF-8; {remedy}") from error
