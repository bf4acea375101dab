"""What docs/parallelism.md has for copying: examples, the Slurm script, the Kubernetes job, the pictures."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from examples import draw_layouts
from gpt_mesh import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "parallelism.md").read_text()


def block(language: str, containing: str) -> str:
    fenced = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return next(text for text in fenced if containing in text)


def test_pictures_are_those_that_the_script_draws():
    assert set(re.findall(r"images/(\w+)\.svg", PAGE)) == set(draw_layouts.PICTURES)
    for name, keys in draw_layouts.PICTURES.items():
        assert (draw_layouts.IMAGES / f"{name}.svg").read_text() == draw_layouts.draw(*keys)


def test_commands_are_flags_that_exist():
    commands = [line.split("#")[0] for line in PAGE.splitlines() if line.startswith("python3 main.py")]
    assert len(commands) == 3
    for command in commands:
        main.parse_arguments(shlex.split(command)[2:])


def test_the_example_of_keys_is_json():
    keys = json.loads("{" + block("json", "mesh_shape") + "}")
    assert keys["layout"].startswith("batch:x,heads:y")


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_slurm_script_starts_main_on_every_host(tmp_path):
    """With stand-ins for Slurm's programs and for python3, which prints what it is called with."""
    program(tmp_path / "scontrol", 'test "$*" = "show hostnames node[0-1]" && printf "node0\\nnode1\\n"')
    program(tmp_path / "srun", 'shift; for i in 0 1; do SLURM_PROCID=$i "$@"; done')
    program(tmp_path / "python3", 'echo "$@"')
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[0-1]",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-e"], input=block("bash", "#SBATCH"), env=environment, capture_output=True, text=True, check=True
    )
    calls = [main.parse_arguments(shlex.split(line)[1:]) for line in done.stdout.splitlines()]
    assert [call.worker for call in calls] == [0, 1]
    assert all((call.model, call.cluster) == (["my_model"], "node0:2222,node1:2222") for call in calls)


def test_the_kubernetes_job_names_each_of_its_pods():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(block("yaml", "kind: Job"))
    name, spec = job["metadata"]["name"], job["spec"]
    assert service["spec"]["selector"] == {"job-name": name} and service["spec"]["clusterIP"] == "None"
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    line = pod["containers"][0]["command"][2].replace("$JOB_COMPLETION_INDEX", "1")
    call = main.parse_arguments(shlex.split(line)[3:])
    pods = [f"{name}-{i}.{pod['subdomain']}:2222" for i in range(spec["completions"])]
    assert (call.cluster, call.worker) == (",".join(pods), 1)
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
