"""A very small model with random weights, and `main.py --serve` over it in a process of its own."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh import api
from gpt_mesh.config import load_config
from gpt_mesh.data.chat_template import ChatTemplate
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.serving.address import listen, url
from gpt_mesh.serving.server import ServerSettings, WebServer
from tests.support.models import enlarge_weights, make_engine, unoptimised_graphs
from tests.support.runs import Workspace

N_CTX = 64
TINY = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_ctx": N_CTX, "attention_types": [[["global"], 1]]}


def random_model(workspace: Workspace, name: str, **keys: Any) -> Path:
    """The config of a model with a checkpoint of random weights, under which every token has its chances."""
    path = workspace.config(name, **{**TINY, "embed_dropout": 0.0, **keys})
    with unoptimised_graphs():
        engine = make_engine(load_config(str(path)), compiled=False)
        engine.create_variables(training=False)
        enlarge_weights(engine)
        engine.save(str(workspace.root / name), 7, {})
    return path


@contextmanager
def serving_here(config: Path, settings: ServerSettings, template: ChatTemplate | None = None) -> Iterator[str]:
    """A server in a thread of this process, uncompiled, which is ready in less time; its URL."""
    with pytest.MonkeyPatch.context() as patch, unoptimised_graphs(), listen("127.0.0.1:0") as bound:
        patch.setattr(DeviceEngine, "__init__", functools.partialmethod(DeviceEngine.__init__, compiled=False))
        server = WebServer(api.load(str(config), devices=["device:CPU:0"]), settings, bound, template)
        where = url(bound)
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield where
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


@dataclass
class Server:
    """A running server.

    Attributes:
        url: without a slash at its end.
        lines: of its standard error so far.
    """

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        """The first line of standard error in which the pattern is found, once it is there."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            reads = self._reader.is_alive()  # once it does not, every line is there
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            if not reads:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self.lines))

    def wait(self, seconds: float = 60) -> int:
        """Until it has ended, and all its lines are read; the exit status."""
        status = self.process.wait(seconds)
        self._reader.join(seconds)
        return status

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.wait()


@contextmanager
def serving(workspace: Workspace, config: Path, *flags: object, **popen: Any) -> Iterator[Server]:
    """`main.py --serve` on a free port of this machine, ended with the block."""
    process = workspace.start("--model", config, "--serve", "127.0.0.1:0", *flags, **popen)
    server = Server(process)
    try:
        server.url = server.wait_for(r"serving \S+ at (http://127\.0\.0\.1:\d+)")[1]
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        server.wait()
