"""How single tokens are written in an answer."""

from __future__ import annotations

import codecs
from functools import cached_property

from gpt_mesh.data.encoders import Encoder

UNBOUNDED = 2**31  # longer than any prompt: nothing is known


class TokenText:
    """Names and bytes of a tokenizer's tokens."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def name(self, token: int) -> str:
        r"""The token's text, or `bytes:\xe2\x82` where it is a part of a character, as OpenAI's interface has it."""
        data = self.data(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def data(self, token: int) -> bytes:
        """The bytes that a token stands for; of a tokenizer that is not byte-level, those of its text alone."""
        text = self._byte_level.get(token)
        return self._encoder.decode([token]).encode() if text is None else text

    @cached_property
    def longest(self) -> int:
        """No token stands for more bytes of text than this."""
        if not self._encoder.splittable:  # some tokenizers make one token of any unknown word, or drop white space
            return UNBOUNDED
        vocabulary = self._encoder.tokenizer.get_vocab(with_added_tokens=True)
        return max(len(token.encode()) for token in vocabulary)

    @cached_property
    def _byte_level(self) -> dict[int, bytes]:
        """The bytes of each token of a byte-level BPE, which writes each byte as one printable character (Radford et
        al., 2019). Empty for another tokenizer.
        """
        if not self._encoder.splittable:
            return {}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in set(printable)]
        alphabet = {chr(byte): byte for byte in printable}
        alphabet |= {chr(256 + place): byte for place, byte in enumerate(others)}
        added = self._encoder.tokenizer.get_added_tokens_decoder()
        return {
            number: bytes(alphabet[character] for character in token)
            for token, number in self._encoder.tokenizer.get_vocab(with_added_tokens=True).items()
            if number not in added
        }


def whole_characters(data: bytes) -> tuple[str, bytes]:
    """The text of `data`, as far as it is whole characters, and the bytes after it that may begin another. What is no
    character becomes U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


def continues(data: bytes) -> bool:
    """Whether these bytes can go on with a character that others have begun."""
    return not data or 0x80 <= data[0] < 0xC0
