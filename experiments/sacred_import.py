"""Imports Sacred where setuptools no longer brings `pkg_resources`, of which Sacred 0.8.7 uses three small things."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import types
import warnings
from typing import Any

from gpt_mesh.errors import InputError


def import_sacred() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    for name in ("sacred", "git"):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"run_experiment.py: {name} is not installed; pip install -r requirements.txt (or -e .) brings it"
            )
    if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        sys.modules["pkg_resources"] = _stand_in()
    with warnings.catch_warnings():  # about pkg_resources, where it is there, and about datetime.utcnow
        warnings.simplefilter("ignore")
        import sacred
    return sacred


def _stand_in() -> types.ModuleType:
    """What Sacred asks of pkg_resources: the installed versions by name, and where its own data files lie."""

    class WorkingSet(list):
        @property
        def by_key(self) -> dict[str, Any]:
            return {distribution.key: distribution for distribution in self}

    def resource_filename(package: str, path: str) -> str:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        return os.path.join(os.path.dirname(spec.origin), path)

    module = types.ModuleType("pkg_resources")
    module.working_set = WorkingSet(  # type: ignore[attr-defined]
        types.SimpleNamespace(key=name.lower(), project_name=name, version=version)
        for name, version in installed().items()
    )
    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return module


def installed() -> dict[str, str]:
    """Versions of the installed packages by name."""
    found = ((each.metadata["Name"], each.version) for each in importlib.metadata.distributions())
    return dict(sorted((name, version) for name, version in found if name and version))
