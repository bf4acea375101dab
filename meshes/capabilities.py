"""What a mesh offers to the graphs that are lowered on it, beyond mesh-tensorflow's `MeshImpl`."""

from __future__ import annotations

from typing import Any


class Capabilities:
    """The defaults; every mesh of this package inherits them.

    Attributes:
        tensor_cores: see `models.context.Context`; whoever knows the devices sets it.
        cpu_products: likewise.
        wants_buckets: whether sums of gradients should be joined in the graph, as no compiler does it.
        variable_placer: says on which host a whole ("master") variable is kept; None: where it is created.
    """

    tensor_cores = False
    cpu_products = False
    wants_buckets = False
    variable_placer: Any = None
