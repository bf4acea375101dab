"""Random configs over the whole key space: what is accepted works, and what is refused is refused in one useful line.

Slow: a covering array, in which every two choices of different features occur together (tests/support/random_configs).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from gpt_mesh.config import ACTIVATIONS
from gpt_mesh.errors import InputError
from tests.support import random_configs
from tests.support.lives import SOURCE, Accepted, accepted, live
from tests.support.models import unoptimised_graphs
from tests.support.random_configs import REMEDY

ROWS = random_configs.covering_rows()
always_the_same = settings(deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True, scope="module")
def quick_graphs() -> Iterator[None]:
    with unoptimised_graphs():
        yield


def check_works(values: Mapping[str, Any], *, afresh: bool) -> None:
    model = accepted(values)
    assert isinstance(model, Accepted), model
    with tempfile.TemporaryDirectory() as directory:
        live(model, Path(directory), afresh=afresh)


def check_refusal(refusal: InputError, name: str | None = None) -> None:
    """One line that names the file, the key and a remedy."""
    text = str(refusal)
    assert "\n" not in text
    named = re.match(rf'{SOURCE}: "?(\w+)', text)
    assert named, text
    assert name is None or named[1] == name, text
    assert REMEDY.search(text[named.end() :]), text


ONE_LAYER = random_configs.FEATURES["attention"][:4]


@settings(always_the_same, max_examples=4)
@given(values=random_configs.configs(attention=ONE_LAYER, mesh=[{}]))
def test_an_accepted_config_trains_restores_and_decodes(values):
    check_works(values, afresh=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=pytest.mark.exhaustive if n % 6 else ()) for n in range(len(ROWS))]
)
def test_every_pair_of_features_trains_restores_and_decodes(number):
    check_works(ROWS[number], afresh=number % 3 == 0)


@settings(always_the_same, max_examples=300)
@given(values=random_configs.configs())
@pytest.mark.slow
def test_no_combination_of_features_is_refused(values):
    found = accepted(values)
    if isinstance(found, InputError):  # but for sizes that a layout does not divide
        assert "does not divide by mesh dimension" in str(found)
        check_refusal(found, "layout")


@settings(always_the_same, max_examples=300)
@given(slip=random_configs.slips())
def test_a_slip_is_refused_in_one_line_that_names_the_key(slip):
    name, values = slip
    found = accepted(values)
    assert isinstance(found, InputError), values
    check_refusal(found, name)


def test_the_rows_hold_every_choice():
    """Of the sweep itself: no pair of choices and no activation is left out."""
    text = [str(row) for row in ROWS]
    for name in ACTIVATIONS:
        assert any(f"'{name}'" in row for row in text)
    assert all(isinstance(accepted(row), Accepted) for row in ROWS)
