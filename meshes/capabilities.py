"""What a mesh offers to the graphs that are lowered on it, beyond mesh-tensorflow's `MeshImpl`."""

from __future__ import annotations

from typing import Any


class Capabilities:
    """The defaults; every mesh of this package inherits them.

    Attributes:
        tensor_cores: see `models.context.Context`; set by code that knows the devices.
        cpu_kernels: likewise.
        wants_buckets: whether gradients should be all-reduced in buckets, since no compiler combines all-reduces.
        variable_placer: chooses the host of each whole ("master") variable; None to leave it where it is created.
    """

    tensor_cores = False
    cpu_kernels = False
    wants_buckets = False
    variable_placer: Any = None
