"""Which flags go together, as the table of modes says it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gpt_mesh.commands.mode import Mode, Table, flag
from gpt_mesh.commands.table import TABLE
from gpt_mesh.config import Config

ROOT = Path(__file__).resolve().parents[2]


def refusal(*flags: str) -> str:
    """What main.py says of flags that do not go together."""
    parser = argparse.ArgumentParser()
    TABLE.add_to(parser)
    arguments = parser.parse_args(["--model", "x", *flags])
    found = TABLE.problem(arguments, TABLE.mode(arguments))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stride", "4"], "--stride goes with --eval only"),
        (["--eval", "--overwrite"], "--overwrite goes with --export only"),
        (["--serve", "--new"], "--new goes with training only"),
        (["--score", "f", "--top_k", "4"], "--top_k goes with --predict and --interactive only"),
        (["--interactive", "--num_samples", "2"], "--num_samples goes with --predict only"),
        (["--predict", "--prompt", "f", "--prompts", "g"], "--prompt goes without --prompts"),
        (["--eval", "--file", "f"], "--file goes with --task only"),
        (["--resize_vocab"], "--resize_vocab goes with --init_from only"),
        (["--profile", "2:3", "--tpu", "t"], "--profile goes without --tpu"),
        (["--tpu", "t", "--gpu_ids", "CPU:0"], "--tpu goes without --gpu_ids and --cluster"),
        (["--export", "d", "--tpu", "t"], "--tpu goes with training, --eval, --predict and --interactive only"),
    ],
)
def test_what_does_not_go_together(flags: list[str], words: str) -> None:
    assert refusal(*flags) == words


def test_each_mode_is_chosen_by_its_own_flag() -> None:
    chosen = {"--eval": "Evaluate", "--predict": "Predict", "--interactive": "Interact", "--score=f": "ScoreFile"}
    chosen |= {"--serve": "Serve", "--export=d": "Export", "--check_dataset": "CheckDataset"}
    chosen |= {"--quickstart=d": "Quickstart"}
    chosen |= {"--auto_layout": "AutoLayout", "--auto_layout_and_mesh_shape": "AutoLayout"}
    parser = argparse.ArgumentParser()
    TABLE.add_to(parser)
    for given, name in chosen.items():
        assert type(TABLE.mode(parser.parse_args([given]))).__name__ == name
    assert type(TABLE.mode(parser.parse_args([]))).__name__ == "Train"


def test_every_flag_has_a_line_of_help_and_is_declared_once() -> None:
    names = [one.name for one in TABLE.flags]
    assert len(names) == len(set(names)) > 40
    for one in TABLE.flags:
        assert one.options["help"], one.name
        assert one.needs is None or one.needs in names, one.name
        assert set(one.without) <= set(names), one.name


def test_a_mode_is_one_object_and_one_line_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    class Count(Mode):
        switches = (flag("--count", action="store_true", help="count"),)
        flags = (flag("--by", type=int, heading="--count", help="steps"),)

        def run(self, config: Config, arguments: argparse.Namespace) -> int:
            return int(arguments.by)

    table = Table((*TABLE.modes, Count()), TABLE.general)
    parser = argparse.ArgumentParser()
    table.add_to(parser)
    arguments = parser.parse_args(["--by", "2"])
    assert table.problem(arguments, table.mode(arguments)) == "--by goes with --count only"
    arguments = parser.parse_args(["--by", "2", "--count"])
    mode = table.mode(arguments)
    assert isinstance(mode, Count) and table.problem(arguments, mode) is None
    parser.print_help()
    assert "\n--count:\n  --by BY " in capsys.readouterr().out


def test_main_is_short() -> None:
    assert len((ROOT / "main.py").read_text().splitlines()) <= 150
