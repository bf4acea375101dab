"""Gradients summed together: fewer messages, the same numbers."""

from __future__ import annotations

import pytest

from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.placement import PlacementMesh
from gpt_mesh.steps import buckets
from tests.support.models import ONE_LAYER, make_engine, tiny_config, train

BY_BATCH = {**ONE_LAYER, "mesh_shape": "a:2", "layout": "batch:a"}


def losses(monkeypatch, limit: int) -> tuple[list[float], int]:
    """Losses of three steps, and how many sums over devices a step's graph has."""
    monkeypatch.setattr(buckets, "BYTES", limit)
    counted: list[int] = []
    allreduce = PlacementMesh.allreduce

    def count(self, x, mesh_axes, reduction):
        counted.append(len(mesh_axes))
        return allreduce(self, x, mesh_axes, reduction)

    monkeypatch.setattr(PlacementMesh, "allreduce", count)
    config = tiny_config(**BY_BATCH)
    found = train(DeviceEngine(config, make_engine(config).plan, spmd=False), 3)
    monkeypatch.setattr(PlacementMesh, "allreduce", allreduce)
    return found, len(counted)


def test_buckets_change_the_messages_and_not_the_losses(monkeypatch):
    weights = 16
    alone, messages_alone = losses(monkeypatch, 0)
    few, messages_few = losses(monkeypatch, 4096)
    together, messages_together = losses(monkeypatch, 32 * 2**20)
    assert few == pytest.approx(alone, rel=1e-6)
    assert together == pytest.approx(alone, rel=1e-6)
    assert messages_together < messages_few < messages_alone
    assert messages_alone - messages_together >= weights - 1
