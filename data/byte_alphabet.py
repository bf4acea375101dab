"""The printable characters that stand for bytes in byte-level vocabularies."""

from __future__ import annotations

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in set(_PRINTABLE)]
ALPHABET = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}
"""The byte of each character (Radford et al. 2019; https://github.com/openai/gpt-2)."""

_CHARACTERS = {byte: character for character, byte in ALPHABET.items()}


def characters(data: bytes) -> str:
    """The characters that stand for these bytes."""
    return "".join(_CHARACTERS[byte] for byte in data)
