"""Files of rows: appended to, read, taken back, whatever a kill or an editor left in them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gpt_mesh.storage.json_lines import JsonLines
from tests.support.runs import logged


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_and_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(str(path))
    for step in (5, 10, 15, 20):
        lines.append({"step": step, "loss": 1 / step, "mfu": None})
    assert rows(path)[1] == {"step": 10, "loss": 0.1, "mfu": None}
    lines.rewind(15)
    assert [row["step"] for row in rows(path)] == [5, 10, 15], "the step itself was logged before its checkpoint"
    lines.append({"step": 20, "loss": 0.0})
    assert [row["step"] for row in rows(path)] == [5, 10, 15, 20]
    lines.rewind(0)
    assert path.read_text() == ""


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for cut in ('{"step": 10, "lo', '{"step": 1', "1", "[]", '{"loss": 2}', '"text"'):
        path.write_text('{"step": 5}\n' + cut)
        JsonLines(str(path)).rewind(100)
        assert path.read_text() == '{"step": 5}\n', cut
        JsonLines(str(path)).append({"step": 6})
        assert [row["step"] for row in rows(path)] == [5, 6]


def test_a_whole_line_without_its_line_break_is_kept_apart_from_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 10}')
    lines = JsonLines(str(path))
    lines.rewind(100)
    lines.append({"step": 15})
    assert [row["step"] for row in rows(path)] == [5, 10, 15]


def test_a_missing_file_is_left_missing(tmp_path):
    JsonLines(str(tmp_path / "metrics.jsonl")).rewind(3)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_does_not_swallow_the_next(tmp_path):
    rows = JsonLines(str(tmp_path / "eval.jsonl"))
    rows.append({"step": 1})
    with open(rows.path, "a") as file:
        file.write('{"step": 2, "nl')
    rows.append({"step": 3})
    rows.append({"step": 4})
    lines = (tmp_path / "eval.jsonl").read_text().splitlines()
    assert lines == ['{"step": 1}', '{"step": 2, "nl', '{"step": 3}', '{"step": 4}']


def test_only_a_newline_ends_a_row(tmp_path: Path) -> None:
    """Other programs do not escape the line and paragraph separators of Unicode."""
    path = tmp_path / "eval.jsonl"
    text = '{"step": 1, "note": "a\u2028b\u0085c"}\n{"step": 2}\n'
    path.write_text(text, encoding="utf-8")
    lines = JsonLines(str(path))
    assert [row["step"] for row in lines.rows()] == [1, 2]
    lines.rewind(5)
    assert path.read_text(encoding="utf-8") == text
    lines.rewind(1)
    assert path.read_text(encoding="utf-8") == text.split("\n")[0] + "\n"


@pytest.mark.parametrize("line", [b"\xff\xfe", b"{half", b"[1]", b'{"loss": 2}', b'{"step": true}', b'"text"'])
def test_a_line_in_the_middle_that_is_not_a_row_is_reported_and_kept(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + line + b'\n{"step": 2}\n' + line + b'\n{"step": 3}\n'
    path.write_bytes(content)
    lines = JsonLines(str(path))
    with logged() as messages:
        lines.rewind(2)
        assert [row["step"] for row in lines.rows()] == [1, 2]
    assert path.read_bytes() == content.removesuffix(b'{"step": 3}\n')
    assert messages == [f"{path}: line 2 is not a row of JSON with a step, nor are 1 more: ignored, and kept"]


def test_a_byte_that_is_not_utf_8_inside_a_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "note": "caf\xe9"}\n')
    lines = JsonLines(str(path))
    lines.rewind(4)
    assert lines.rows() == [{"step": 1, "note": "caf\ufffd"}]
    assert path.read_bytes() == b'{"step": 1, "note": "caf\xe9"}\n', "nothing was edited"


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    JsonLines(str(path)).append({"step": 1, "perplexity": math.inf, "all": [math.nan, {"x": -math.inf}, 0.1]})
    assert path.read_text() == '{"step": 1, "perplexity": null, "all": [null, {"x": null}, 0.1]}\n'
