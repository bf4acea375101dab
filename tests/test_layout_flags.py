"""The flags that fit a mesh and find a layout, through main.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh import main
from tests.support.runs import ONE_LAYER, REPOSITORY, Run, Workspace, printed

FOR_256: dict[str, Any] = {"mesh_shape": "x:64,y:4", "layout": "batch:x,heads:y,vocab:y", "train_batch_size": 4}
TWO = ("--gpu_ids", "device:CPU:0", "device:CPU:1")


def test_training_on_fewer_devices_names_the_flag_and_the_change(workspace: Workspace, run: Run) -> None:
    config = workspace.config("wide", **FOR_256)
    status, out, err = run("--model", config, "--gpu_ids", "device:CPU:0")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == (
        f'error: {config}: "mesh_shape": "x:64,y:4" is for 256 devices, but 1 device was given (device:CPU:0); add '
        '--fit_mesh, or set "mesh_shape": "", "layout": "", or name 256 devices with --gpu_ids'
    )


def test_auto_layout_prints_what_can_be_pasted(workspace: Workspace, run: Run) -> None:
    config = workspace.config("auto", **FOR_256 | {"train_batch_size": 64})
    status, out, _ = run("--model", config, "--auto_layout")
    assert status == 0 and f"{config} on 256 devices" in out
    assert "Least memory: " in out and '"mesh_shape": "x:64,y:4", "layout": "' in out and "    batch:x  1 of 64" in out
    status, out, _ = run("--model", config, "--auto_layout_and_mesh_shape", "--devices", 4)
    assert status == 0 and "on 4 devices" in out and "as --fit_mesh would lay it out" in out
    status, out, _ = run("--model", workspace.config("alone"), "--auto_layout", "--gpu_ids", "device:CPU:0")
    assert (status, out) == (0, "One device holds everything: there is nothing to split. For more: --devices N\n")
    status, out, err = run("--model", config, "--auto_layout", "--apply", 99)
    assert (status, out) == (1, "") and "--apply 99: there are rows 1 to" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--devices", "4"), "--devices goes with --auto_layout or --auto_layout_and_mesh_shape only"),
        (("--apply",), "--apply goes with --auto_layout or --auto_layout_and_mesh_shape only"),
        (("--fit_mesh", "--eval"), "--fit_mesh goes with training, --dry_run and --find_lr only"),
        (("--auto_layout", "--auto_layout_and_mesh_shape"), "not allowed with argument"),
        (("--auto_layout", "--devices", "0"), "'0' is not a whole number of at least 1"),
    ],
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(["--model", "demo", *flags])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow
def test_a_config_for_256_devices_trains_where_it_is_fitted(workspace: Workspace) -> None:
    config = workspace.config("fitted", **ONE_LAYER, **FOR_256, train_steps=2, predict_max_steps=3)
    done = workspace.run("--model", config, "--fit_mesh", *TWO)
    assert done.returncode == 0, done.stderr
    assert '"mesh_shape": "x:64,y:4" is for 256 devices; fitted to 2 devices: "x:1,y:2"' in done.stderr
    assert "devices device:CPU:0, device:CPU:1; mesh x:1, y:2; layout heads:y, vocab:y" in done.stderr
    kept = json.loads((Path(json.loads(config.read_text())["model_path"]) / "config.json").read_text())
    assert (kept["mesh_shape"], kept["train_batch_size"]) == ("x:64,y:4", 4), "the config stays as it is"
    for devices in (TWO, TWO[:2]):
        evaluated = workspace.run("--model", config, "--eval", *devices)
        assert evaluated.returncode == 0 and "is for 256 devices; fitted to " in evaluated.stderr, evaluated.stderr
        assert printed(evaluated.stdout)["step"] == 2
    text = config.with_name("text.txt")
    text.write_text("import os\n")
    for flags in (("--score", text), ("--predict", "--prompt", text)):
        done = workspace.run("--model", config, *flags, *TWO)
        assert done.returncode == 0 and 'fitted to 2 devices: "x:1,y:2"' in done.stderr, done.stderr
        assert done.stdout.startswith(("{", "import os")), done.stdout


@pytest.mark.slow
def test_what_apply_writes_trains(workspace: Workspace) -> None:
    config = workspace.config("plain", **ONE_LAYER, train_steps=2)
    done = workspace.run("--model", config, "--auto_layout_and_mesh_shape", "--devices", 2, "--apply")
    assert done.returncode == 0, done.stderr
    applied = config.with_name("plain_auto.json")
    assert f"wrote {applied} with row 1" in done.stdout
    trained = workspace.run("--model", applied, *TWO)
    assert trained.returncode == 0 and "mesh x:2" in trained.stderr, trained.stderr


@pytest.mark.slow
def test_the_13b_config_is_searched_without_its_memory() -> None:
    """Its weights alone would take 51 GB. `benchmarks/layout_advice.py` times the search."""
    # A process begins with the peak of the one that starts it, so this one must not do that.
    between = (
        "import resource, subprocess, sys; status = subprocess.call(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
    )
    search = [sys.executable, "main.py", "--model", "gpt3_13B_256", "--auto_layout_and_mesh_shape"]
    command = [sys.executable, "-c", between, *search]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    *lines, kilobytes = done.stdout.splitlines()
    assert any(re.match(r"now +14\.6 GiB", line) for line in lines), lines
    assert int(kilobytes) * 1024 < 4e9
