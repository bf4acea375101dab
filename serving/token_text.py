"""How single tokens appear in a response, and their offsets in its text."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import cached_property

from tokenizers import Tokenizer

from gpt_mesh.data.bytes import token_bytes
from gpt_mesh.data.encoders import Encoder

UNBOUNDED = 2**31  # larger than any prompt, for tokenizers whose token lengths are not known


class TokenText:
    """Names and bytes of a tokenizer's tokens."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def name(self, token: int) -> str:
        r"""The token's text inside a longer text, with its leading space; `bytes:\xe2\x82` if it is part of a
        character, as in OpenAI's API.
        """
        data = self.data(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def data(self, token: int) -> bytes:
        """The bytes that a token represents inside a text."""
        data = self.own_bytes.get(token)
        return self.text_after(self._word, token).encode() if data is None else data

    def text_after(self, before: int | None, token: int) -> str:
        """The text that a token adds after the token `before`; None at the start of a text."""
        decode = self.encoder.decode
        if before is None:
            return decode([token])
        both, first = decode([before, token]), decode([before])
        return both[len(first) :] if both.startswith(first) else decode([token])

    def offsets(self, text: str, tokens: Sequence[int]) -> list[int]:
        """The offset of each token in `text`, whose tokens these are: the number of complete characters before it.
        There may be one more at the start, which begins texts.
        """
        encoding = self._whole_offsets.encode(text, add_special_tokens=False)
        for added in (0, 1):
            # Also for normalized text, whose characters differ from those of the tokens.
            if encoding.ids == list(tokens[added:]):
                return [*[0] * added, *(start for start, _ in encoding.offsets)]
        places = TokenPlaces(self)
        return [min(places.add(token), len(text)) for token in tokens]

    @cached_property
    def own_bytes(self) -> dict[int, bytes]:
        """See `token_bytes`."""
        return token_bytes(self.encoder)

    @cached_property
    def longest(self) -> int:
        """The maximum number of bytes of text that a token represents."""
        if not self.encoder.splittable:  # e.g. one token for any unknown word, or white space dropped
            return UNBOUNDED
        vocabulary = self.encoder.tokenizer.get_vocab(with_added_tokens=True)
        return max(len(token.encode()) for token in vocabulary)

    @cached_property
    def _word(self) -> int | None:
        """A token that has a text in every position; None if the tokenizer has none."""
        vocabulary = self.encoder.tokenizer.get_vocab(with_added_tokens=False)
        added = self.encoder.tokenizer.get_added_tokens_decoder()
        plain = (number for token, number in sorted(vocabulary.items()) if token.isascii() and token.isalnum())
        return next((number for number in plain if number not in added and number not in self.own_bytes), None)

    @cached_property
    def _whole_offsets(self) -> Tokenizer:
        """The tokenizer without its post-processor, which may exclude a token's leading space from its offsets."""
        definition = json.loads(self.encoder.tokenizer.to_str())
        return Tokenizer.from_str(json.dumps({**definition, "post_processor": None}))


class TokenPlaces:
    """Offsets of tokens in a growing text: the number of complete characters before each.

    Invalid bytes become U+FFFD; they count as characters once they are known to be invalid.
    """

    def __init__(self, names: TokenText, start: int = 0, before: int | None = None) -> None:
        """
        Args:
            names: the names of the tokens.
            start: number of characters before the first token.
            before: the token before the first one, if the text continues it.
        """
        self._names, self._offset, self._before = names, start, before
        self._bytes = b""  # an incomplete character or run of bytes

    def add(self, token: int) -> int:
        """Add the next token; returns its offset."""
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
        if self._bytes and data and not 0x80 <= data[0] < 0xC0:  # not a continuation, so the bytes before are invalid
            self._offset, self._bytes = self._offset + 1, b""
        offset = self._offset
        whole, self._bytes = _whole_characters(self._bytes + data)
        self._offset += len(whole)
        return offset


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    """The text of `data` up to its last complete character, and the bytes after it that may begin another. Invalid
    bytes become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


def _length_of_run(data: bytes) -> int:
    """Number of characters of a run of byte-fallback tokens: valid UTF-8 as a whole, or one U+FFFD for each byte."""
    try:
        return len(data.decode("utf-8"))
    except UnicodeDecodeError:
        return len(data)
