"""Chi-square tests without SciPy. The draws under test are functions of seeds, so a test passes always or never."""

from __future__ import annotations

import math

import numpy as np


def chi_square_z(observed: np.ndarray, expected: np.ndarray) -> float:
    """How far counts are from what is expected, in standard deviations of a normal variable.

    By the cube root of chi-square over its degrees of freedom, cells - 1 (Wilson & Hilferty, 1931).
    """
    assert expected.min() >= 5, "chi-square needs five expected in each cell"
    freedom = observed.size - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
