"""How far apart what tests compare really is: pytest -p tests.support.differences FILES

Prints a row for each test function and tolerance given to np.testing.assert_allclose: the largest absolute difference,
the largest relative one, and the largest share of what the tolerance allows (1 would fail). The figures of
docs/equivalence.md come from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

_worst: dict[tuple[str, float, float], np.ndarray] = {}  # by test, rtol and atol: absolute, relative, share


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    test = item.nodeid.partition("[")[0]
    compare = np.testing.assert_allclose

    def recorded(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0, **keys: Any) -> None:
        compare(actual, desired, rtol=rtol, atol=atol, **keys)
        key = (test, float(rtol), float(np.max(atol)))
        _worst[key] = np.maximum(_worst.get(key, np.zeros(3)), _figures(actual, desired, rtol, atol))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.testing, "assert_allclose", recorded)
        return (yield)


def _figures(actual: Any, desired: Any, rtol: float, atol: Any) -> np.ndarray:
    found, wanted = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (actual, desired)))
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.where(found == wanted, 0, np.abs(found - wanted))  # equal infinities are not apart
        of_wanted = np.where(apart > 0, apart / np.abs(wanted), 0)
        of_allowed = np.where(apart > 0, apart / (atol + rtol * np.abs(wanted)), 0)
    return np.array([np.nanmax(x, initial=0) for x in (apart, of_wanted, of_allowed)])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("worst differences")
    terminalreporter.line("   rtol    atol | absolute relative   share | test")
    for (test, rtol, atol), (absolute, relative, share) in sorted(_worst.items()):
        terminalreporter.line(f"{rtol:7.0e} {atol:7.0e} | {absolute:8.1e} {relative:8.1e} {share:7.4f} | {test}")
