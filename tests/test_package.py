"""`import gpt_mesh`: what it gives, and that it changes nothing in the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpt_mesh
from gpt_mesh import api, errors

ROOT = Path(__file__).resolve().parents[1]

STATE = """
import json, logging, os, signal, sys, threading, warnings

def descriptors():
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return {link: os.readlink(link) for link in links if os.path.exists(link)}

def state():
    return {
        "environment": dict(os.environ), "path": list(sys.path), "hooks": [repr(one) for one in sys.meta_path],
        "descriptors": descriptors() if os.path.isdir("/proc/self/fd") else {}, "directory": os.getcwd(),
        "signals": [repr(signal.getsignal(n)) for n in signal.valid_signals()], "threads": threading.active_count(),
        "streams": [repr(sys.stdout), repr(sys.stderr)], "loggers": sorted(logging.root.manager.loggerDict),
        "filters": [repr(one) for one in warnings.filters],
    }

modules, before = set(sys.modules), state()
import gpt_mesh
added, after = set(sys.modules) - modules, state()
outside = [name for name in added if name.split(".")[0] not in sys.stdlib_module_names and name != "gpt_mesh"]
print(json.dumps({"changed": [key for key in before if before[key] != after[key]], "outside": outside,
                  "version": gpt_mesh.__version__, "names": dir(gpt_mesh)}))
"""


@pytest.mark.parametrize("where", ["checkout", "elsewhere"])
def test_importing_it_changes_nothing(tmp_path: Path, where: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if where == "elsewhere":
        environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", STATE],
        cwd=ROOT if where == "checkout" else tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["changed"] == [] and found["outside"] == []
    assert found["version"] == gpt_mesh.__version__ and {"train", "evaluate", "load"} <= set(found["names"])


def test_it_shows_the_face() -> None:
    assert gpt_mesh.train is api.train and gpt_mesh.evaluate is api.evaluate and gpt_mesh.load is api.load
    assert gpt_mesh.Model is api.Model and gpt_mesh.InputError is errors.InputError
    assert set(gpt_mesh.__all__) <= set(dir(gpt_mesh))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        gpt_mesh.nonsense  # noqa: B018


@pytest.mark.parametrize("folder", ["data", "experiments"])
def test_files_beside_a_program_hide_no_package(folder: str) -> None:
    """A program's own folder comes first on the path: a file beside it would be imported in place of a package."""
    names = [path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"]
    code = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    command = [sys.executable, "-I", "-c", code, *names]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
