"""How single tokens are written in an answer, and where in its text they are."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import cached_property

from tokenizers import Tokenizer

from gpt_mesh.data.bytes import token_bytes
from gpt_mesh.data.encoders import Encoder

UNBOUNDED = 2**31  # longer than any prompt: the length of tokens is not known


class TokenText:
    """Names and bytes of a tokenizer's tokens."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def name(self, token: int) -> str:
        r"""The token's text inside a longer one, with the space it begins with; or `bytes:\xe2\x82` where it is a part
        of a character, as OpenAI's interface has it.
        """
        data = self.data(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def data(self, token: int) -> bytes:
        """The bytes that a token stands for inside a text."""
        data = self.own_bytes.get(token)
        return self.text_after(self._word, token).encode() if data is None else data

    def text_after(self, before: int | None, token: int) -> str:
        """The text that a token adds to that of the token before; None: nothing stands before it."""
        decode = self.encoder.decode
        if before is None:
            return decode([token])
        both, first = decode([before, token]), decode([before])
        return both[len(first) :] if both.startswith(first) else decode([token])

    def offsets(self, text: str, tokens: Sequence[int]) -> list[int]:
        """Where in `text`, whose tokens these are, each token begins: the number of whole characters before it."""
        encoding = self._whole_offsets.encode(text, add_special_tokens=False)
        if encoding.ids == list(tokens):  # true of normalized text, too, whose characters are not those of the tokens
            return [start for start, _ in encoding.offsets]
        places = TokenPlaces(self)
        return [min(places.add(token), len(text)) for token in tokens]

    @cached_property
    def own_bytes(self) -> dict[int, bytes]:
        """See `token_bytes`."""
        return token_bytes(self.encoder)

    @cached_property
    def longest(self) -> int:
        """No token stands for more bytes of text than this."""
        if not self.encoder.splittable:  # some tokenizers make one token of any unknown word, or drop white space
            return UNBOUNDED
        vocabulary = self.encoder.tokenizer.get_vocab(with_added_tokens=True)
        return max(len(token.encode()) for token in vocabulary)

    @cached_property
    def _word(self) -> int | None:
        """A token that has a text wherever it stands; None where the tokenizer has none."""
        vocabulary = self.encoder.tokenizer.get_vocab(with_added_tokens=False)
        added = self.encoder.tokenizer.get_added_tokens_decoder()
        plain = (number for token, number in sorted(vocabulary.items()) if token.isascii() and token.isalnum())
        return next((number for number in plain if number not in added and number not in self.own_bytes), None)

    @cached_property
    def _whole_offsets(self) -> Tokenizer:
        """The tokenizer without its post-processor, which may count a token's leading space as no part of it."""
        definition = json.loads(self.encoder.tokenizer.to_str())
        return Tokenizer.from_str(json.dumps({**definition, "post_processor": None}))


class TokenPlaces:
    """Where tokens begin in a text, as they come: the number of whole characters before each.

    Bytes that are no character are shown as U+FFFD, and count as such once that is certain.
    """

    def __init__(self, names: TokenText, start: int = 0, before: int | None = None) -> None:
        """
        Args:
            names: of the tokens.
            start: characters before the first token.
            before: the token before the first, if its text goes on.
        """
        self._names, self._offset, self._before = names, start, before
        self._bytes = b""  # of a character, or of a run of bytes, that has begun

    def add(self, token: int) -> int:
        """Where a token begins, which follows those that were added."""
        if self._names.encoder.byte_level:
            return self._add_byte_level(self._names.data(token))
        before, self._before = self._before, token
        if (data := self._names.own_bytes.get(token)) is not None:
            offset = self._offset + len(_whole_characters(self._bytes)[0])
            self._bytes += data
            return offset
        self._offset += _length_of_run(self._bytes)
        self._bytes = b""
        offset = self._offset
        self._offset += len(self._names.text_after(before, token))
        return offset

    def _add_byte_level(self, data: bytes) -> int:
        if self._bytes and data and not 0x80 <= data[0] < 0xC0:  # they do not go on: what was begun is no character
            self._offset, self._bytes = self._offset + 1, b""
        offset = self._offset
        whole, self._bytes = _whole_characters(self._bytes + data)
        self._offset += len(whole)
        return offset


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    """The text of `data` up to its last whole character, and the bytes after it that may begin another. What is no
    character becomes U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


def _length_of_run(data: bytes) -> int:
    """Characters of a run of bytes of a tokenizer with byte fallback: all of it is UTF-8, or each byte is U+FFFD."""
    try:
        return len(data.decode("utf-8"))
    except UnicodeDecodeError:
        return len(data)
