"""Text and a tokenizer for the data tests: Python's own library, which every machine has."""

from __future__ import annotations

import email
import json
from pathlib import Path

import pytest

from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.sources import file_sources
from gpt_mesh.data.train_tokenizer import save, train_tokenizer


@pytest.fixture(scope="session")
def sources() -> list[str]:
    """Some dozens of Python files."""
    return sorted(str(path) for module in (json, email) for path in Path(module.__path__[0]).glob("*.py"))


@pytest.fixture(scope="session")
def tokenizer_path(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(train_tokenizer(file_sources(sources), 1000), str(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def encoder(tokenizer_path: str) -> Encoder:
    return load_encoder(tokenizer_path)
