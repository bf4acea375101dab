"""Configs of published models have their published numbers of parameters, and are exported as their families."""

from __future__ import annotations

import re

import pytest

from gpt_mesh.config import CONFIG_DIRECTORY, load_config
from gpt_mesh.interop.architectures import ARCHITECTURES
from gpt_mesh.models.shapes import weight_count

# Model cards and papers; a tied weight counts once.
PUBLISHED = {
    "gpt2_124m": ("gpt2", 124_439_808),
    "gpt2_355m": ("gpt2", 354_823_168),
    "gpt2_774m": ("gpt2", 774_030_080),
    "gpt2_1558m": ("gpt2", 1_557_611_200),
    "gptj_6b": ("gptj", 6_050_882_784),  # Hugging Face's; 6,053,381,344 on the model card
    "gpt_neox_20b": ("gpt_neox", 20_554_567_680),
    "pythia_14m": ("gpt_neox", 14_067_712),
    "pythia_31m": ("gpt_neox", 30_494_720),
    "pythia_70m": ("gpt_neox", 70_426_624),
    "pythia_160m": ("gpt_neox", 162_322_944),
    "pythia_410m": ("gpt_neox", 405_334_016),
    "pythia_1b": ("gpt_neox", 1_011_781_632),
    "pythia_1-4b": ("gpt_neox", 1_414_647_808),
    "pythia_2-8b": ("gpt_neox", 2_775_208_960),
    "pythia_6-9b": ("gpt_neox", 6_857_302_016),
    "pythia_12b": ("gpt_neox", 11_846_072_320),
    "falcon_7b": ("falcon", 6_921_720_704),
    "palm_8b": (None, 8_632_012_800),  # 8.63 billion in the paper
    "bloom_560m": ("bloom", 559_214_592),
    "llama_7b": ("llama", 6_738_415_616),
    "llama_13b": ("llama", 13_015_864_320),
    "llama2_7b": ("llama", 6_738_415_616),
    "llama2_13b": ("llama", 13_015_864_320),
    "llama3-1_8b": ("llama", 8_030_261_248),
    "llama3-2_1b": ("llama", 1_235_814_400),
    "mistral_7b": ("mistral", 7_241_732_096),
    "mixtral_8x7b": ("mixtral", 46_702_792_704),
    "qwen2-5_0-5b": ("qwen2", 494_032_768),
    "qwen3_0-6b": ("qwen3", 596_049_920),
}
PAGE = (CONFIG_DIRECTORY.parent / "docs" / "huggingface.md").read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_of_parameters(name: str) -> None:
    config = load_config(name)
    family, count = PUBLISHED[name]
    assert weight_count(config.model) == count
    assert f"| `{name}` | {count:,} | {config.model.n_ctx:,} |" in PAGE
    if family is not None:
        assert ARCHITECTURES[family].obstacles(config) == []


def test_every_published_config_is_on_the_page() -> None:
    table = PAGE[PAGE.index("## Configs") : PAGE.index("## What was compared")]
    assert {*re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)} == {*PUBLISHED}
