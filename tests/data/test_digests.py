"""The set of digests against Python's."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from gpt_mesh.data.digests import DIGEST_BYTES, DigestSet


def digest(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=DIGEST_BYTES).digest()


@given(st.lists(st.sampled_from([bytes(16), b"\1" * 15 + b"\2", *map(digest, range(9)), b"\0" * 15 + b"\7"])))
def test_against_a_set(digests: list[bytes]) -> None:
    found, expected = DigestSet(), set[bytes]()
    for each in digests:
        assert found.add(each) == (each not in expected)
        expected.add(each)
    assert len(found) == len(expected)


def test_many_in_little_memory() -> None:
    found, count = DigestSet(), 40_000
    assert all(found.add(digest(number)) for number in range(count))
    assert not any(found.add(digest(number)) for number in range(count))
    assert len(found) == count
    assert sum(map(len, found._tables)) / count < 26
