"""Mistakes with several hosts on the command line: one clear line each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from gpt_mesh import main
from tests.support.clusters import addresses
from tests.support.runs import REPOSITORY, Workspace


def command(*flags: object, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "main.py"), *map(str, flags)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--cluster", "a:1,b"], "--cluster: 'b' is not host:port with a port from 1 to 65535; such as node0:2222"),
        (["--cluster", "a:1,a:1"], "--cluster: a:1 is listed twice; list each host once"),
        (["--cluster", "a:1,b:1", "--worker", "2"], "--worker 2: --cluster lists 2 hosts, so workers are 1 to 1"),
    ],
)
def test_what_can_be_told_at_once(flags: list[str], expected: str) -> None:
    status, said = command("--model", "laptop", *flags)
    assert status == 1 and said.startswith(f"error: {expected}") and said.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--worker", "1"],
        ["--model", "laptop", "--cluster_timeout", "9"],
        ["--cluster", "a:1,b:1"],
        ["--cluster", "a:1,b:1", "--worker", "0"],
        ["--cluster", "a:1,b:1", "--worker", "-1"],
        ["--cluster", "a:1,b:1", "--worker", "one"],
        ["--model", "laptop", "--cluster", "a:1,b:1", "--check_dataset"],
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(SystemExit) as caught:
        main.main(flags)
    assert caught.value.code == 2


def test_tf_config_beside_flags_and_without_a_model() -> None:
    described = json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}})
    status, said = command("--model", "laptop", "--cluster", "a:1,b:1", TF_CONFIG=described)
    assert (status, said) == (
        1,
        "error: --cluster and TF_CONFIG both name the hosts; leave out --cluster, or unset TF_CONFIG\n",
    )
    status, said = command(TF_CONFIG=described)
    assert status == 1 and said.startswith("error: --model is missing") and said.count("\n") == 1


@pytest.mark.slow
def test_a_taken_port_and_an_absent_worker(workspace: Workspace) -> None:
    hosts = addresses(2)
    flags = ("--cluster", ",".join(hosts), "--cluster_timeout", 1)
    with socket.create_server(("", int(hosts[1].rpartition(":")[2]))):
        status, said = command(*flags, "--worker", 1)
    assert status == 1 and said.startswith(f"error: {hosts[1]}: port ") and said.count("\n") == 1, said
    status, said = command("--model", workspace.config("absent_worker", train_batch_size=4), *flags)
    last = said.splitlines()[-1]
    assert status == 1 and last.startswith(f"error: no worker at {hosts[1]} (connection refused) in 1 s"), said
