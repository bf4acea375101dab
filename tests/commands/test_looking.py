"""`--summary`, `--plot` and `--score --html`: what one looks at."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gpt_mesh import api
from gpt_mesh.data.characters import character_encoder
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.scoring import Score
from gpt_mesh.evaluation.surprise import page, pieces
from gpt_mesh.training.plot import plot
from tests.support.runs import Trained


def test_the_command_line_shows_a_model(trained: Trained) -> None:
    done = trained.workspace.run("--model", trained.config, "--summary")
    assert done.returncode == 0 and "wte" in done.stdout and done.stdout.splitlines()[1].startswith("model ")


def test_curves_of_runs_are_drawn(trained: Trained, tmp_path: Path) -> None:
    first, second = tmp_path / "one.svg", tmp_path / "two.svg"
    done = trained.workspace.run("--model", trained.config, "--plot", first, "--beside", trained.directory)
    assert done.returncode == 0 and done.stdout == f"wrote {first}\n", done.stderr
    root = ElementTree.parse(first).getroot()
    assert root.tag.endswith("svg") and len(first.read_text()) > 10_000
    plot(str(second), [str(trained.directory)] * 2)
    assert first.read_text() == second.read_text()
    plot(str(tmp_path / "run.png"), [str(trained.directory)])
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_that_cannot_be_drawn(trained: Trained, tmp_path: Path) -> None:
    for path, runs, words in [
        (tmp_path / "a.gif", [trained.directory], r"--plot .*a\.gif: must end in \.svg, \.png, \.pdf"),
        (tmp_path / "a.svg", [tmp_path], r"no metrics\.jsonl there"),
        (tmp_path / "none" / "a.svg", [trained.directory], "cannot be written: No such file"),
    ]:
        with pytest.raises(InputError, match=words):
            plot(str(path), list(map(str, runs)))


def test_a_page_has_the_text_and_each_token_s_bits(trained: Trained, tmp_path: Path) -> None:
    text, out = tmp_path / "some.txt", tmp_path / "some.html"
    text.write_text("import os\nnaïve <b> 世界 🚀 & more\n", encoding="utf-8")
    done = trained.workspace.run("--model", trained.directory, "--score", text, "--html", out)
    assert done.returncode == 0 and "perplexity" in done.stdout, done.stderr
    written = out.read_text(encoding="utf-8")
    shown = re.search(r"<pre>(.*)</pre>", written, re.DOTALL)
    assert shown is not None
    plain = re.sub(r"<[^>]*>", "", shown[1]).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain == text.read_text(encoding="utf-8")
    model = api.load(str(trained.directory))
    score = model.score(text.read_text(encoding="utf-8"))
    total = sum(bits for _, bits in pieces(score, model.encoder) if bits is not None)
    assert total == pytest.approx(-score.sum / math.log(2), rel=1e-6)
    assert not re.search(r"(src|href)=", written)  # nothing is fetched


def test_an_unlikely_token_is_darker() -> None:
    encoder = character_encoder(["ab"])
    written = page("x<y", [Score([2, 3, 2], [None, -0.1, -5.0], -5.1, 3)], encoder)
    strengths = [int(found) for found in re.findall(r"--s:(\d+)", written)]
    assert strengths[0] < strengths[1] and "<h1>x&lt;y</h1>" in written
    assert 'title="7.21 bits, probability 0.00674"' in written
    assert "0 tokens" in page("t", [Score([], [], 0.0, 0)], encoder)
