"""What a model of PyTorch's gives but for rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def exact_logits(model: Any, tokens: list[list[int]]) -> np.ndarray:
    """Logits [batch, n, vocab] of ids [batch, n], in float64 by one thread: what is compared with them has the rounding
    of one side only, and this side's is the same each time. The model's weights are float64 then.
    """
    torch.set_num_threads(1)
    with torch.no_grad():
        found: np.ndarray = model.eval().double()(torch.tensor(tokens)).logits.numpy()
    return found
