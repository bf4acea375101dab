"""A large set of digests in little memory."""

from __future__ import annotations

DIGEST_BYTES = 16  # among 10^12 documents, two alike by accident: less than 1 in 10^14

_TABLES = 1024
_FULL = 0.8  # of a table's slots
_GROWTH = 1.25


class DigestSet:
    """Digests of DIGEST_BYTES evenly distributed bytes: 20 to 25 bytes of memory each (a Python set takes about 100).

    Hash tables with open addressing and linear probing (Knuth, The Art of Computer Programming, vol. 3, 6.4), many
    small ones, so that growing one of them needs no second copy of the whole. An empty slot is zeros; the digest of
    zeros itself is taken for another.
    """

    def __init__(self) -> None:
        self._tables = [bytearray(DIGEST_BYTES * 4) for _ in range(_TABLES)]
        self._counts = [0] * _TABLES

    def __len__(self) -> int:
        return sum(self._counts)

    def add(self, digest: bytes) -> bool:
        """Whether it is new to the set, to which it belongs from now on."""
        digest = digest if any(digest) else b"\1" * DIGEST_BYTES
        number = int.from_bytes(digest[:4], "little") % _TABLES
        table = self._tables[number]
        slot = _find(table, digest)
        if table[slot : slot + DIGEST_BYTES] == digest:
            return False
        table[slot : slot + DIGEST_BYTES] = digest
        self._counts[number] += 1
        if self._counts[number] * DIGEST_BYTES > _FULL * len(table):
            self._tables[number] = _grown(table)
        return True


def _find(table: bytearray, digest: bytes) -> int:
    """Where in the table `digest` is, or would be put."""
    slot = int.from_bytes(digest[4:12], "little") % (len(table) // DIGEST_BYTES) * DIGEST_BYTES
    while (found := table[slot : slot + DIGEST_BYTES]) != digest and any(found):
        slot = (slot + DIGEST_BYTES) % len(table)
    return slot


def _grown(table: bytearray) -> bytearray:
    slots = int(len(table) // DIGEST_BYTES * _GROWTH) + 1
    larger = bytearray(slots * DIGEST_BYTES)
    for start in range(0, len(table), DIGEST_BYTES):
        digest = bytes(table[start : start + DIGEST_BYTES])
        if any(digest):
            slot = _find(larger, digest)
            larger[slot : slot + DIGEST_BYTES] = digest
    return larger
