"""The host's side of training: it waits for the device when figures are due; batches come before their step."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import api
from gpt_mesh.config import load_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.training import loop
from tests.support.models import ONE_LAYER, make_engine, tiny_config, token_batch
from tests.support.runs import Workspace


class Device:
    """Stands for an engine's device: its steps give figures that note when they are asked for."""

    def __init__(self) -> None:
        self.staged: list[tf.Tensor] = []
        self.given: list[tf.Tensor] = []
        self.threads: set[threading.Thread] = set()
        self.asked: list[tuple[int, int]] = []  # (step of the figure, steps given until then)

    def stage(self, tokens: np.ndarray) -> tf.Tensor:
        self.threads.add(threading.current_thread())
        self.staged.append(tf.constant(tokens))
        return self.staged[-1]

    def train_step(self, tokens: tf.Tensor) -> dict[str, Any]:
        self.given.append(tokens)
        return {name: Figure(self, len(self.given)) for name in ("loss", "nll", "lr", "grad_norm")}


class Figure:
    """A number on the device."""

    def __init__(self, device: Device, step: int) -> None:
        self._device, self._step = device, step

    def __array__(self, *unused: Any, **more_unused: Any) -> np.ndarray:
        self._device.asked.append((self._step, len(self._device.given)))
        return np.array(self._step, np.float32)

    def __float__(self) -> float:
        return float(self.__array__())


def run_on(device: Device, workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> None:
    monkeypatch.setattr(DeviceEngine, "create_variables", lambda self, training: None)
    snapshot = lambda self: {"global_step": tf.constant(len(device.given), tf.int64)}  # noqa: E731
    monkeypatch.setattr(DeviceEngine, "snapshot", snapshot)
    monkeypatch.setattr(DeviceEngine, "stage", lambda self, tokens: device.stage(tokens))
    monkeypatch.setattr(DeviceEngine, "train_step", lambda self, tokens: device.train_step(tokens))
    api.train(load_config(str(workspace.config(name, **ONE_LAYER, **keys))), steps_per_checkpoint=20)


def test_figures_are_asked_for_when_they_are_due(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(loop, "FETCH_SECONDS", 1e9)
    run_on(device, workspace, "late", monkeypatch, train_steps=25, iterations=10)
    # The first step, which is waited for; the logged ones, of which the last two have a checkpoint too.
    assert sorted({given for _, given in device.asked}) == [1, 10, 20, 25]
    assert {step for step, given in device.asked if given == 10} == set(range(2, 11))


def test_the_host_does_not_run_far_ahead(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(loop, "FETCH_SECONDS", 0.0)
    run_on(device, workspace, "near", monkeypatch, train_steps=10, iterations=10)
    assert sorted({given for _, given in device.asked}) == list(range(1, 11))


def test_batches_are_staged_in_order_beside_the_steps(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    run_on(device, workspace, "staged", monkeypatch, train_steps=12, iterations=10)
    assert len(device.given) == 12
    assert all(given is staged for given, staged in zip(device.given, device.staged, strict=False))
    assert 12 <= len(device.staged) <= 12 + loop.STAGED + 1
    assert threading.main_thread() not in device.threads


def test_a_batch_in_the_type_of_a_gpu_makes_the_same_step() -> None:
    losses = []
    for staged_type in (tf.int32, tf.int64):
        engine = make_engine(tiny_config(**ONE_LAYER, embed_dropout=0.1), compiled=False)
        engine.staged_type = staged_type
        tokens = engine.stage(token_batch(engine.config))
        assert tokens.dtype == staged_type
        losses.append([float(engine.train_step(tokens)["loss"]) for _ in range(2)])
    assert losses[0] == losses[1]
