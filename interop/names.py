"""What each weight is called here and in Hugging Face's GPT-Neo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config import ModelConfig

PREFIX = "transformer."  # of a GPTNeoForCausalLM's names; a bare GPTNeoModel has none
HEAD = "lm_head.weight"

VOCABULARY = ("gpt2/wte", "gpt2/linear_out/kernel")  # weights with a row, there, for each token

_TOP = {"wte": "wte.weight", "wpe": "wpe.weight", "ln_f/g": "ln_f.weight", "ln_f/b": "ln_f.bias"}
_LAYER = {
    "norm_1/g": "ln_1.weight",
    "norm_1/b": "ln_1.bias",
    "attn/q": "attn.attention.q_proj.weight",
    "attn/k": "attn.attention.k_proj.weight",
    "attn/v": "attn.attention.v_proj.weight",
    "attn/o": "attn.attention.out_proj.weight",
    "attn/compute_output_bias/o_b": "attn.attention.out_proj.bias",
    "norm_2/g": "ln_2.weight",
    "norm_2/b": "ln_2.bias",
    "mlp/conv1d_main/c_fc/kernel": "mlp.c_fc.weight",
    "mlp/conv1d_main/c_fc/bias": "mlp.c_fc.bias",
    "mlp/conv1d_main/c_proj/kernel": "mlp.c_proj.weight",
    "mlp/conv1d_main/c_proj/bias": "mlp.c_proj.bias",
}
_TRANSPOSED = ("attn/q", "attn/k", "attn/v", "attn/o", "c_fc/kernel", "c_proj/kernel", "linear_out/kernel")


@dataclass(frozen=True)
class Counterpart:
    """A weight in Hugging Face's state dict.

    Attributes:
        name: such as `transformer.h.0.attn.attention.q_proj.weight`.
        transposed: kept there as output × input, as torch.nn.Linear keeps it, and here as input × output.
    """

    name: str
    transposed: bool

    def turned(self, array: NDArray) -> NDArray:
        """The array as the other side keeps it; the same function both ways."""
        return array.T if self.transposed else array

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape as the other side has it."""
        return shape[::-1] if self.transposed else shape


def counterparts(model: ModelConfig) -> dict[str, Counterpart]:
    """Where each weight of a model, by its name here, is in Hugging Face's GPT-Neo, in that one's order."""
    names = {f"gpt2/{ours}": PREFIX + theirs for ours, theirs in _TOP.items() if ours.startswith("w")}
    for i in range(model.n_layer):
        names |= {f"gpt2/h{i}/{ours}": f"{PREFIX}h.{i}.{theirs}" for ours, theirs in _LAYER.items()}
    names |= {f"gpt2/{ours}": PREFIX + theirs for ours, theirs in _TOP.items() if ours.startswith("ln_f")}
    if model.no_weight_tie:
        names["gpt2/linear_out/kernel"] = HEAD
    return {ours: Counterpart(theirs, ours.endswith(_TRANSPOSED)) for ours, theirs in names.items()}


def is_buffer(name: str) -> bool:
    """Whether a tensor of a state dict is no weight: the masks that older files hold."""
    return name.endswith((".attn.attention.bias", ".attn.attention.masked_bias"))


def is_finite(array: NDArray) -> bool:
    """Whether every element is a finite number. In pieces, so that little memory is taken."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[i : i + (1 << 22)]).all()) for i in range(0, flat.size, 1 << 22))
