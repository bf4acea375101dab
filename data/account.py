"""Where the documents and the tokens of a corpus went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Account:
    """Every document and every token that was read is written, or dropped for a reason.

    bytes: UTF-8 bytes of the text that was read. separators: tokens put after documents. shortest: tokens of the
    shortest record.
    """

    documents_read: int = 0
    tokens_read: int = 0
    bytes_read: int = 0
    separators: int = 0
    documents_written: int = 0
    records: int = 0
    tokens_written: int = 0
    shortest: int | None = None
    dropped_documents: Counter[str] = field(default_factory=Counter)
    dropped_tokens: Counter[str] = field(default_factory=Counter)

    def read(self, tokens: int, size: int) -> None:
        """Count a document: the number of its tokens, and of its bytes of text."""
        self.documents_read += 1
        self.tokens_read += tokens
        self.bytes_read += size

    def written(self, tokens: int, documents: int) -> None:
        """Count a record. documents: how many begin in it."""
        self.records += 1
        self.tokens_written += tokens
        self.documents_written += documents
        self.shortest = tokens if self.shortest is None else min(self.shortest, tokens)

    def drop(self, reason: str, tokens: int, documents: int) -> None:
        self.dropped_tokens[reason] += tokens
        self.dropped_documents[reason] += documents

    def add(self, other: Account) -> None:
        """Count all that `other` has counted: of other documents, or of the same further on their way."""
        for key, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, key).update(value)
            elif key != "shortest":
                setattr(self, key, getattr(self, key) + value)
        self.shortest = min((n for n in (self.shortest, other.shortest) if n is not None), default=None)

    @property
    def adds_up(self) -> bool:
        tokens = self.tokens_read + self.separators == self.tokens_written + self.dropped_tokens.total()
        return tokens and self.documents_read == self.documents_written + self.dropped_documents.total()

    def check(self) -> None:
        """Assert that it adds up."""
        assert self.adds_up, self

    def lines(self) -> list[str]:
        """The account as a small table."""
        rows = [
            ("documents read", f"{self.documents_read:,}"),
            *((f"- {reason}", f"{count:,}") for reason, count in self.dropped_documents.items() if count),
            ("= documents written", f"{self.documents_written:,}"),
            ("bytes read", f"{self.bytes_read:,}"),
            ("tokens read", f"{self.tokens_read:,}"),
            ("+ separators", f"{self.separators:,}"),
            *((f"- {reason}", f"{count:,} tokens") for reason, count in self.dropped_tokens.items() if count),
            ("= tokens written", f"{self.tokens_written:,}"),
            ("records", f"{self.records:,}"),
            ("shortest record", "none" if self.shortest is None else f"{self.shortest:,} tokens"),
        ]
        width = max(len(label) for label, _ in rows)
        return [f"{label:<{width}}  {value}" for label, value in rows]

    def to_json(self) -> dict[str, Any]:
        counters = {key: dict(value) for key, value in vars(self).items() if isinstance(value, Counter)}
        return {**vars(self), **counters}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Account:
        """Raises KeyError, TypeError or ValueError when `values` are not what to_json() gives."""
        account = Account(**{key: value for key, value in values.items() if not key.startswith("dropped_")})
        account.dropped_documents.update(values["dropped_documents"])
        account.dropped_tokens.update(values["dropped_tokens"])
        return account


def nothing_written(accounts: Sequence[Account]) -> str:
    """Why there is no record."""
    read = sum(account.documents_read for account in accounts)
    if not read:
        return "nothing written: its files hold no document"
    documents = sum((account.dropped_documents for account in accounts), Counter[str]())
    tokens = sum((account.dropped_tokens for account in accounts), Counter[str]())
    dropped = "; ".join(
        f"{reason}: {count:,} documents, {tokens[reason]:,} tokens" for reason, count in documents.items()
    )
    return f"nothing written of {read:,} documents ({dropped}); lower the limit, or give more text"
