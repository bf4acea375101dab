"""The models that GPT-NeoX trains: transformers' GPT-NeoX, and what that has no keys for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config import ModelConfig
from gpt_mesh.interop import rope
from gpt_mesh.interop.architectures.gpt_neox import GPTNeoX
from gpt_mesh.interop.exchange import Exchange, grouped_qkv, same, transposed

GATED = {"geglu": "gelu_exact", "swiglu": "silu", "reglu": "relu"}


def hidden_features(inner: float) -> int:
    """The width of a gated feed-forward of `intermediate_size` = inner: two thirds of it are for value and gate
    together, and both divisions round down.
    """
    return int(inner * 2 / 3) // 2


class NeoXModel(GPTNeoX):
    """A model of GPT-NeoX itself. Values are those of transformers' GPT-NeoX, and:

    * `pos_emb`: `rotary`, `learned`, `alibi` or `none`;
    * `norm`: `layernorm`, `rmsnorm` or `scalenorm`, whose epsilon is `layer_norm_eps`;
    * `gpt_j_tied`: parallel attention and feed-forward read one norm;
    * `num_key_value_heads`;
    * `gated`: whether the feed-forward is;
    * `mlp_bias`.
    """

    def __init__(self, *, separate: bool = False) -> None:
        """separate: the values and gates of a gated feed-forward are two tensors, as with `mlp_type: llama`."""
        self.separate = separate

    defaults: ClassVar[Mapping[str, Any]] = {
        **GPTNeoX.defaults,
        "pos_emb": "rotary",
        "norm": "layernorm",
        "gpt_j_tied": False,
        "num_key_value_heads": None,
        "gated": False,
        "mlp_bias": True,
    }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        keys = super().model_keys(values, source)
        if values["pos_emb"] != "rotary":
            unused = rope.keys(values, source)
            keys = {name: value for name, value in keys.items() if name not in unused}
        kv_heads = values["num_key_value_heads"]
        return {
            **keys,
            "pos_emb": values["pos_emb"],
            "norm": values["norm"],
            "gpt_j_tied": values["gpt_j_tied"],
            **({} if kv_heads is None else {"num_kv_heads": kv_heads}),
            **({"mlp_glu": True, "glu_columns": "separate"} if values["gated"] else {}),
            "use_bias_in_mlp": values["mlp_bias"],
        }

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        learned = [same("gpt_neox.embed_positions.weight", "gpt2/wpe")] if model.pos_emb == "learned" else []
        return [*super().exchanges(model), *learned]

    def _norm(self, model: ModelConfig, theirs: str, ours: str) -> list[Exchange]:
        if model.norm == "scalenorm":  # a vector of one element there
            gain = f"{theirs}.weight", f"{ours}/g"
            return [Exchange((gain[0],), (gain[1],), lambda x: [x[0].reshape(1)], lambda x: [x[0].reshape(())])]
        found = super()._norm(model, theirs, ours)
        return found if model.norm == "layernorm" else found[:1]

    def _qkv(self, model: ModelConfig, theirs: str, ours: list[str]) -> Exchange:
        if model.num_kv_heads == model.n_head:
            return grouped_qkv(theirs, ours, model.n_head, model.head_dim)
        heads, kv_heads = model.n_head, model.num_kv_heads
        return _stacked_rows(theirs, ours, [size * model.head_dim for size in (heads, kv_heads, kv_heads)])

    def _feed_forward(self, model: ModelConfig, theirs: str, ours: str) -> list[Exchange]:
        if not model.mlp_glu:
            found = super()._feed_forward(model, theirs, ours)
            return found if model.use_bias_in_mlp else found[::2]
        if self.separate:
            names = {"w1": "c_gate", "w3": "c_fc", "w2": "c_proj"}
            return [transposed(f"{theirs}.{name}.weight", f"{ours}/{here}/kernel") for name, here in names.items()]
        found = [transposed(f"{theirs}.dense_4h_to_h.weight", f"{ours}/c_proj/kernel")]
        if model.use_bias_in_mlp:
            found.append(same(f"{theirs}.dense_4h_to_h.bias", f"{ours}/c_proj/bias"))
        for tensor, weight in (("weight", "kernel"), ("bias", "bias"))[: 1 + model.use_bias_in_mlp]:
            halves = [f"{ours}/{part}/{weight}" for part in ("c_fc", "c_gate")]
            found.append(_stacked_rows(f"{theirs}.dense_h_to_4h.{tensor}", halves, [model.intermediate_size] * 2))
        return found


def _stacked_rows(theirs: str, ours: Sequence[str], sizes: Sequence[int]) -> Exchange:
    """Matrices [input, output], or vectors [output], whose outputs are the rows of one tensor, one behind the other."""

    def unpack(arrays: Sequence[NDArray]) -> Sequence[NDArray]:
        return [part.T for part in np.split(arrays[0], np.cumsum(sizes)[:-1])]

    return Exchange((theirs,), tuple(ours), lambda arrays: [np.concatenate([array.T for array in arrays])], unpack)


def rows_by_part(sizes: Sequence[int], devices: int, whole: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows of a tensor of several parts, part by part.

    Args:
        sizes: rows of each part on one device.
        devices: how many of them the rows of each part are cut over.
        whole: the rows of all parts of the first device, then those of the second, and so on.
    """
    by_device = whole.reshape(devices, -1, *whole.shape[1:])
    parts = np.split(by_device, np.cumsum(sizes)[:-1], 1)
    return np.concatenate([part.reshape(-1, *whole.shape[1:]) for part in parts])
