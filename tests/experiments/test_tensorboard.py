"""TensorBoard beside a run: on loopback, on a port of its own, gone with the run."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from gpt_mesh.experiments.tensorboard_page import tensorboard
from tests.support.runs import logged


def wait_for_one(messages: Sequence[str]) -> None:
    for _ in range(1200):
        if messages:
            return
        time.sleep(0.1)
    pytest.fail("nothing was logged within two minutes")


@pytest.mark.slow
def test_it_serves_while_the_run_lasts(tmp_path: Path) -> None:
    with logged() as messages, tensorboard(str(tmp_path)):
        wait_for_one(messages)
        found = re.fullmatch(r"TensorBoard: (http://127\.0\.0\.1:(\d+)/)", messages[0])
        assert found is not None, messages
        assert b"TensorBoard" in urllib.request.urlopen(found[1]).read()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", int(found[2]))) != 0


def test_it_says_why_it_did_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("")
    (tmp_path / "tensorboard" / "main.py").write_text("raise SystemExit('no such thing')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with logged() as messages, tensorboard(str(tmp_path)):
        wait_for_one(messages)
    assert messages == ["TensorBoard did not start: no such thing"]
