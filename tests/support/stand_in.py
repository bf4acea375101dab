"""Stands in for main.py: writes what a training run writes, in milliseconds, and ends as it is told to.

    STAND_IN=FILE python3 stand_in.py PARENT_PID HEARTBEAT_FILE [flags of main.py]

FILE is JSON: `model_path`, `train_steps`, `every` (steps from one checkpoint to the next), and `lives`, one for each
start: `[how, step]`, where `how` is kill, stop, stuck, hang (but its heart beats), traceback, early (before
its first row), error, wait (for a signal), leave (a process behind), or end. It resumes, rewinds its rows and answers
SIGTERM as the real one does. One that stands still writes `hung-N` beside the run first, N counting starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def rewind(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        if "".join(kept) != path.read_text():
            path.with_suffix(".writing").write_text("".join(kept))
            path.with_suffix(".writing").rename(path)


def append(path: Path, **row: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def newest(folder: Path) -> int:
    return max((int(path.stem.partition("-")[2]) for path in folder.glob("model.ckpt-*.index")), default=0)


def save(folder: Path, step: int) -> None:
    (folder / f"model.ckpt-{step}.index").write_text("")
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "./model.ckpt-{step}"\n')


def beat(heart: str, beats: int, work: int) -> None:
    Path(heart).write_text(f"{beats} {work}")


def run(heart: str, flags: list[str]) -> int:
    given = json.loads(Path(os.environ["STAND_IN"]).read_text())
    folder = Path(given["model_path"])
    folder.mkdir(exist_ok=True)
    append(folder / "lives.jsonl", flags=flags)
    life = len((folder / "lives.jsonl").read_text().splitlines())
    how, when = given["lives"][min(life, len(given["lives"])) - 1]
    requested: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: requested.append(number))
    if "--new" in flags:
        for path in [*folder.glob("model.ckpt-*"), folder / "checkpoint", folder / "metrics.jsonl"]:
            path.unlink(missing_ok=True)
    step = newest(folder)
    for name in ("metrics.jsonl", "eval.jsonl"):
        rewind(folder / name, step)
    if how == "early":
        raise RuntimeError("no device")
    print(f"training from step {step}", file=sys.stderr, flush=True)
    while step < given["train_steps"] and not requested:
        step += 1
        beat(heart, step, step)
        append(folder / "metrics.jsonl", step=step, loss=1 / step, mfu=None, tokens_per_second=float(life))
        if step % given["every"] == 0:
            save(folder, step)
            append(folder / "eval.jsonl", step=step, task="validation", nll=2 / step, tokens=7, words=5)
            (folder / "predictions").mkdir(exist_ok=True)
            (folder / "predictions" / f"samples_step_{step}.txt").write_text(f"sample of {step}\n")
        if step == when:
            end(how, requested, folder, life, heart)
        time.sleep(0.005)
    save(folder, step)
    return 0


def stand_still(mark: Path, heart: str) -> None:
    """Beat as the thread of a process does whose work hangs."""
    mark.touch()
    for beats in range(1000, 7000):
        beat(heart, beats, 999)
        time.sleep(0.01)
    raise RuntimeError("nobody ended it")


def end(how: str, requested: list[int], folder: Path, life: int, heart: str) -> None:
    mark = folder.parent / f"hung-{life}"
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "stuck":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        mark.touch()
        time.sleep(60)
    if how == "hang":
        stand_still(mark, heart)
    if how == "leave":
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (folder / "left").write_text(str(left.pid))
    if how == "traceback":
        raise RuntimeError("the device is gone")
    if how == "error":
        sys.exit("error: model.json: the loss became nan")
    while how == "wait" and not requested:
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(run(sys.argv[2], sys.argv[3:]))
