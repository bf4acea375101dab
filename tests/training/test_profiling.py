"""`--profile`: which steps are profiled, and the table of where their time went."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tensorflow as tf

from gpt_mesh.training import profiling
from gpt_mesh.training.profiling import Profiler, Steps, kind_of, part
from tests.support.runs import ONE_LAYER, Run, Workspace, logged


def nothing() -> None:
    """There is nothing to wait for."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the profiler of TensorFlow is asked for."""
    asked: list[str] = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda *_, **__: asked.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: asked.append("stop"))
    monkeypatch.setattr(profiling, "_spaces", lambda folder: [])
    return asked


def run(folder: Path, steps: Steps | int | None, done: int, last: int, calls: list[str]) -> list[str]:
    """The calls, with the numbers of the steps that are done between them."""
    (folder / "plugins" / "profile" / "now").mkdir(parents=True, exist_ok=True)
    profiler = Profiler(str(folder), steps, done)
    for step in range(done + 1, last + 1):
        profiler.before(step, nothing)
        calls.append(str(step))
        profiler.after(step, nothing)
    profiler.close(last, nothing)
    return calls


@pytest.mark.parametrize(
    ("steps", "done", "wanted"),
    [
        (None, 0, "1 2 3 4 5"),
        (Steps(3, 4), 0, "1 2 start 3 4 stop 5"),
        (Steps(1, 3), 0, "1 start 2 3 stop 4 5"),
        (Steps(1, 1), 0, "1 2 3 4 5"),
        (Steps(4, 9), 0, "1 2 3 start 4 5 stop"),
        (Steps(2, 4), 2, "3 start 4 stop 5"),
        (Steps(1, 3), 2, "3 4 5"),
        (2, 0, "1 start 2 3 stop 4 5"),
        (2, 2, "3 start 4 5 stop"),
    ],
)
def test_the_steps_asked_for_are_profiled_but_none_that_compiles(
    steps: Steps | int | None, done: int, wanted: str, calls: list[str], tmp_path: Path
) -> None:
    assert " ".join(run(tmp_path, steps, done, 5, calls)) == wanted


@pytest.mark.parametrize(
    ("origin", "kind"),
    [
        ("einsum_5/gradients/einsum_1/parallel_0/einsum/Einsum", ("einsum", True)),
        ("attend/parallel_0/Softmax", ("attend", False)),
        ("layer_norm_12/parallel_0/mul", ("layer_norm", False)),
        ("wrapped_reduce-window.10", ("reduce-window", False)),
        ("copies", ("copies", False)),
    ],
)
def test_an_operation_is_known_by_what_made_it(origin: str, kind: tuple[str, bool]) -> None:
    assert kind_of(origin) == kind


@pytest.mark.parametrize("compiled", [True, False])
def test_the_table_adds_up(compiled: bool, tmp_path: Path) -> None:
    """Of a graph with one large and one small product, under names as the mesh graph gives them."""

    def step(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.name_scope("large_1"):
            y = x @ x
        with tf.name_scope("small_1/gradients"):
            return y, x[:8] @ x

    with tf.device("/device:CPU:0"):
        function = tf.function(step, autograph=False, jit_compile=compiled)
        x = tf.ones([700, 700])
        function(x)
        profiler = Profiler(str(tmp_path), Steps(2, 5), 0)
        with logged() as messages:
            for number in range(2, 6):
                profiler.before(number, nothing)
                with part("train", step_num=number, _r=1):
                    function(x)[0].numpy()
                assert profiler.after(number, nothing) == (number == 5)
    first, whole, *lines = messages
    folder = Path(first.removeprefix("profile of steps 2 to 5, for TensorBoard: "))
    assert list(folder.glob("*.xplane.pb"))
    assert (folder / "summary.txt").read_text().splitlines() == messages
    rows = [re.fullmatch(r"  (.+?) +([\d.]+(?: +[\d.]+)*) ms +([\d.]+)%", line) for line in lines]
    headings = [line.split() for line, row in zip(lines, rows, strict=True) if row is None]
    assert headings[0] == ["time", "share"] and headings[2] == ["forward", "backward", "share"]
    parts = {row[1]: float(row[2]) for row in rows[:5] if row}
    assert len(parts) == 4 and sum(parts.values()) == pytest.approx(float(whole.split()[0]), abs=0.1)
    assert parts["training step"] > 0
    shares = {row[1]: float(row[3]) for row in rows[5:] if row}
    assert sum(shares.values()) == pytest.approx(100, abs=0.3)
    assert max(shares, key=lambda name: shares[name]) == "large"


@pytest.mark.slow
def test_main_profiles_a_run(workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.config("profiled", train_steps=8, iterations=4, **ONE_LAYER)
    process = workspace.run("--model", config, "--profile", "3:6", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "profile of steps 3 to 6" in process.stderr and "einsum" in process.stderr
    (summary,) = (workspace.root / "profiled").glob("plugins/profile/*/summary.txt")
    assert "training step" in summary.read_text()


@pytest.mark.slow
def test_steps_after_the_end_of_a_run_are_profiled_and_not_saved(workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.config("ended", train_steps=4, iterations=2, **ONE_LAYER)
    assert workspace.run("--model", config, cwd=tmp_path).returncode == 0
    folder = workspace.root / "ended"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("model", "metrics"))}
    process = workspace.run("--model", config, "--profile", "3", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "the next 3 steps are profiled, and not saved" in process.stderr
    assert "profile of steps 6 to 8" in process.stderr and "einsum" in process.stderr
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("model", "metrics"))}
    assert len(before) > 2 and after == before


def test_mistakes_with_the_flag(run: Run, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    config = workspace.config("unprofiled", train_steps=8)
    status, _, err = run("--model", config, "--profile", "9:12")
    assert status == 1 and err.splitlines()[-1].startswith(f"error: --profile 9:12: {config} ends at train_steps 8")
    for flags in (["--profile", "5:3"], ["--profile", "x"], ["--profile", "1:2", "--eval"]):
        with pytest.raises(SystemExit):
            run("--model", config, *flags)
