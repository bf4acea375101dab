"""Makes a checkout importable as the package that it is, without installing it.

A program that is started in a checkout (`python3 main.py`) has that folder first on its path and finds this file under
the package's name. It puts the real package, `__init__.py` beside it, in its own place. An installed `gpt_mesh` does
not need it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if __name__ == "gpt_mesh" or "gpt_mesh" not in sys.modules:
    _folder = Path(__file__).resolve().parent
    _spec = importlib.util.spec_from_file_location(
        "gpt_mesh", _folder / "__init__.py", submodule_search_locations=[str(_folder)]
    )
    assert _spec is not None and _spec.loader is not None
    _package = importlib.util.module_from_spec(_spec)
    sys.modules["gpt_mesh"] = _package
    _spec.loader.exec_module(_package)
