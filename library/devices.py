"""The devices that a caller names, and an engine on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from gpt_mesh.cluster.addresses import Cluster, find_cluster
from gpt_mesh.cluster.chief import hosts_of
from gpt_mesh.config import Config
from gpt_mesh.engine.building import restored_engine
from gpt_mesh.engine.interface import Engine
from gpt_mesh.tpu.engine import tpu_engine
from gpt_mesh.training import runs


@contextmanager
def engine_on(
    config: Config, checkpoint: str, devices: Sequence[str] | None, cluster: Cluster | str | None, tpu: str | None
) -> Iterator[Engine]:
    """An engine on the devices that the arguments name, with the weights of a checkpoint."""
    if tpu is not None:
        with closing(tpu_engine(config, tpu)) as engine:
            engine.restore(checkpoint, finite=True)
            yield engine
        return
    with hosts_of(as_cluster(cluster), devices) as hosts, hosts.guarded(runs.how_to_repeat):
        yield restored_engine(config, checkpoint, hosts)


def as_cluster(cluster: Cluster | str | None) -> Cluster | None:
    """A cluster, also from its addresses as text."""
    return find_cluster(cluster, None, {}) if isinstance(cluster, str) else cluster
