"""What the processor offers, on made-up systems."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_mesh.config import Config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes import processor
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.training import report
from tests.support.models import ONE_LAYER, tiny_config

CPU = MeshPlan({}, {}, ("/device:CPU:0",))


def system(root: Path, **files: str) -> Path:
    """A root with these files; `__` in a name is `/`, `_dot_` is a dot."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("features", "width", "wins"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile", 256, True),
        ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile", 255, False),
        ("flags\t\t: fpu avx512_bf16", 4096, False),
        ("Features\t: fp asimd bf16", 4096, None),
    ],
)
def test_bfloat16_wins_with_amx_and_wide_models(tmp_path: Path, features: str, width: int, wins: bool | None) -> None:
    root = system(tmp_path, proc__cpuinfo=f"processor\t: 0\n{features}\n\nprocessor\t: 1\n{features}\n")
    assert processor.bfloat16_wins(width, root) is wins


def test_without_a_list_of_features_nothing_is_known(tmp_path: Path) -> None:
    assert processor.bfloat16_wins(4096, tmp_path) is None


GROUPS = {
    "version 2": {
        "proc__self__cgroup": "0::/a/b\n",
        "sys__fs__cgroup__a__cpu_dot_max": "150000 100000\n",
        "sys__fs__cgroup__a__b__cpu_dot_max": "max 100000\n",
    },
    "in a container": {"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu_dot_max": "150000 100000\n"},
    "version 1": {
        "proc__self__cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/1\n",
        "sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us": "200000\n",
        "sys__fs__cgroup__cpu__cpu_dot_cfs_period_us": "100000\n",
    },
}


@pytest.mark.parametrize("files", GROUPS.values(), ids=list(GROUPS))
def test_threads_are_as_many_as_the_share_of_processors(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_cores", lambda: 64)
    environment: dict[str, str] = {}
    processor.limit_threads(environment, system(tmp_path, **files))
    assert environment == {"TF_NUM_INTRAOP_THREADS": "2"}
    environment = {"TF_NUM_INTRAOP_THREADS": "7"}
    processor.limit_threads(environment, tmp_path)
    assert environment == {"TF_NUM_INTRAOP_THREADS": "7"}  # the user's


@pytest.mark.parametrize("limit", [None, "max 100000\n", "6400000 100000\n", "nonsense\n"])
def test_without_a_smaller_share_tensorflow_decides(
    tmp_path: Path, limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_cores", lambda: 64)
    if limit is not None:
        system(tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__cpu_dot_max=limit)
    environment: dict[str, str] = {}
    processor.limit_threads(environment, tmp_path)
    assert environment == {}


def on(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    monkeypatch.setattr(processor, "_features", lambda root: set(features))


def wide(**keys: object) -> Config:
    return tiny_config(**ONE_LAYER, n_embd=256, **keys)


def test_a_config_that_loses_by_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "avx2")
    narrow = tiny_config(precision="bfloat16")
    remedy = "leave the key out to train here"
    said = f"tiny.json: precision = bfloat16: is slower than float32 on this CPU; {remedy}"
    assert report.warnings(wide(precision="bfloat16"), CPU) == report.warnings(narrow, CPU) == [said]
    assert report.warnings(wide(), CPU) == []
    assert report.warnings(narrow, MeshPlan({}, {}, ("/device:GPU:0",))) == []
    on(monkeypatch, "avx512_bf16", "amx_bf16")
    assert report.warnings(wide(precision="bfloat16"), CPU) == []
    (line,) = report.warnings(narrow, CPU)
    assert line == f"tiny.json: precision = bfloat16: is slower than float32 at n_embd = 16, less than 256; {remedy}"
    on(monkeypatch)
    assert report.warnings(narrow, CPU) == []


def test_only_training_in_fast_bfloat16_is_left_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "amx_bf16")
    assert not DeviceEngine(wide(precision="bfloat16"), CPU).training_compiled
    assert DeviceEngine(wide(precision="bfloat16"), CPU).compiled  # the rest
    assert DeviceEngine(wide(), CPU).training_compiled
    assert DeviceEngine(wide(precision="bfloat16"), CPU, compiled=True).training_compiled
    on(monkeypatch, "avx2")
    assert DeviceEngine(wide(precision="bfloat16"), CPU).training_compiled
