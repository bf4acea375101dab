"""One wrong thing at a time in a config: a value of the wrong type or range, a key nobody knows, a key mis-spelt.

Each is refused in one line that names the file, the key and a remedy, or taken and kept.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_mesh import config
from gpt_mesh.config import ALIASES, GROUPS, DatasetConfig, MoeParams, keys, load_config, parse_config
from gpt_mesh.errors import InputError
from tests.support.random_configs import REMEDY

MODEL_KEYS = sorted({*(name for group in GROUPS.values() for name in keys(group)), *ALIASES})
MOE_KEYS = sorted(keys(MoeParams))
DATASET_KEYS = sorted(keys(DatasetConfig))
BASE = {
    "n_head": 2, "n_embd": 8, "n_layer": 2, "n_ctx": 8, "n_vocab": 32, "lr": 0.01, "train_batch_size": 2,
    "train_steps": 3, "datasets": ["tiny"], "model_path": "unused",
}  # fmt: skip
DATASET = {"path": "none/*.tfrecords", "n_vocab": 16}

NUMBERS = [0, 1, 2, 3, 7, -1, -(10**30), 2**31, 2**63 - 1, 2**63, 10**400, 0.5, 1.0, -0.0, 1e-320, 1e308]
NO_NUMBERS = [math.nan, math.inf, -math.inf, True, False, None]
TEXTS = ["", " ", "1", "1e-3", "true", "null", "adam", "gelu", "x:2", "batch:x", "a:b:c", "x:0", "é\n", "nan"]
NESTED = [[], {}, [[]], [1], [0, 0], [None], ["gelu"], [[1, 2]], [[["global"], 2]], [[["global"], -1]], [["tiny", 1]]]
WRONG = [*NUMBERS, *NO_NUMBERS, *TEXTS, *NESTED, {"": 1}, {"moe_num_experts": [2]}, [["tiny", 0.5, "chunks", 0]]]
JUNK = st.recursive(
    st.sampled_from(WRONG) | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=8,
)
always_the_same = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def parsed(values: Mapping[str, Any]) -> config.Config | str:
    """Of flat keys: the config, or the refusal, once it is known to be one useful line."""
    here = Path(__file__).parent / "support"
    try:
        found = parse_config(values, "model.json", here)
    except InputError as error:
        check_line(str(error))
        return str(error)
    assert parse_config(found.to_json(), "model.json", here) == found
    return found


def check_line(text: str) -> None:
    assert "\n" not in text and text.isprintable(), text
    match = re.match(r"\S+\.json: \w+", text)
    assert match and REMEDY.search(text[match.end() :]), text


def check_kept(name: str, value: Any, kept: Any) -> None:
    """What is taken is taken as it is: no truth as a number, no number that is none."""
    if isinstance(value, (bool, int, float)):
        assert float(kept) == float(value) and isinstance(kept, bool) == isinstance(value, bool), (name, value, kept)


def check_model_key(name: str, value: Any) -> None:
    found = parsed({**BASE, name: value})
    if isinstance(found, str):
        assert name in found, (value, found)
    else:
        check_kept(name, value, found.to_json()[ALIASES.get(name, name)])


def check_mixture_key(name: str, value: Any) -> None:
    found = parsed({**BASE, "moe_layers": [1], "moe_params": {name: value}})
    if isinstance(found, str):
        assert "moe_params" in found and name in found, (value, found)
    else:
        check_kept(name, value, found.to_json()["moe_params"][name])


def test_every_key_refuses_every_wrong_value_by_its_name():
    for value in WRONG:
        for name in MODEL_KEYS:
            check_model_key(name, value)
        for name in MOE_KEYS:
            check_mixture_key(name, value)


@settings(always_the_same, max_examples=300)
@given(name=st.sampled_from(MODEL_KEYS), value=JUNK)
def test_a_key_refuses_junk_by_its_name(name, value):
    check_model_key(name, value)


@settings(always_the_same, max_examples=100)
@given(name=st.sampled_from(MOE_KEYS), value=JUNK)
def test_a_setting_of_mixtures_refuses_junk_by_its_name(name, value):
    check_mixture_key(name, value)


@settings(always_the_same, max_examples=300)
@given(name=st.sampled_from(DATASET_KEYS), value=JUNK)
def test_a_wrong_value_in_a_dataset_config_is_refused_by_its_key(name, value, tmp_path):
    (tmp_path / "dataset_configs").mkdir(exist_ok=True)
    (tmp_path / "dataset_configs" / "mine.json").write_text(json.dumps({**DATASET, name: value}))
    (tmp_path / "model.json").write_text(json.dumps({**BASE, "datasets": ["mine"]}))
    try:
        load_config(str(tmp_path / "model.json"))
    except InputError as error:
        assert "\n" not in str(error)
        assert name in str(error) or "is not JSON" in str(error) or "digits" in str(error), error


def misspelt(name: str, place: int, how: str) -> str:
    """A key with a letter left out, doubled, or swapped with the next."""
    place %= len(name) - 1
    middle = {"out": "", "double": 2 * name[place], "swap": name[place + 1] + name[place]}[how]
    return name[:place] + middle + name[place + (2 if how == "swap" else 1) :]


@settings(always_the_same, max_examples=300)
@given(name=st.sampled_from(MODEL_KEYS), place=st.integers(0, 40), how=st.sampled_from(["out", "double", "swap"]))
def test_a_misspelt_key_is_refused_with_the_right_one(name, place, how):
    wrong = misspelt(name, place, how)
    if wrong in MODEL_KEYS:
        return
    text = parsed({**BASE, wrong: 1})
    assert isinstance(text, str) and text.startswith(f"model.json: {wrong} = 1: unknown key"), text
    if len(name) > 3 and wrong not in config.RETIRED_KEYS:
        assert "did you mean" in text, text


@settings(always_the_same, max_examples=100)
@given(name=st.text(max_size=12), value=JUNK)
def test_a_key_nobody_knows_is_refused(name, value):
    if name not in MODEL_KEYS:
        with pytest.raises(InputError, match=r"unknown key"):
            parse_config({**BASE, name: value}, "model.json", Path(__file__).parent / "support")
