"""The block variants in NumPy float64, written from the papers alone, one head and one query at a time.

Linear attention: Shen et al. 2018 (both directions), Katharopoulos et al. 2020 (causal). Learned keys and values:
Sukhbaatar et al. 2019. Rotary: Su et al. 2021. Axial positions: Kitaev et al. 2020. GLU: Shazeer 2020. Macaron: Lu et
al. 2019. ReZero: Bachlechner et al. 2020. ScaleNorm: Nguyen & Salazar 2019.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpt_mesh.config import Config, ModelConfig
from tests.support.reference import Arrays, layer_norm, softmax

Bias = Callable[[Arrays, int, np.ndarray], np.ndarray]


def logits(weights: Arrays, tokens: np.ndarray, config: Config, bias: Bias | None = None) -> np.ndarray:
    """[batch, sequence, n_vocab] for tokens [batch, sequence]; weights by their names without `gpt2/`.

    bias: what is added to attention's logits, of weights, head and distances (query minus key); without `wpe` then.
    """
    w = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    return np.stack([_Row(w, config.model, not config.mlm.mlm_training, bias).logits(row) for row in tokens])


class _Row:
    """The model for one sequence."""

    def __init__(self, w: Arrays, model: ModelConfig, causal: bool, bias: Bias | None) -> None:
        self.w, self.model, self.causal, self.bias = w, model, causal, bias

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        x = np.stack([self.w["wte"][token] + self._position(p) for p, token in enumerate(tokens)])
        for i in range(self.model.n_layer):
            x = self._block(x, "h0" if self.model.share_parameters else f"h{i}", self.model.attention_types[i])
        out = self.w["linear_out/kernel"] if self.model.no_weight_tie else self.w["wte"].T
        return self._norm(x, "ln_f") @ out

    def _position(self, p: int) -> np.ndarray | float:
        if self.model.rotary_emb or self.bias:
            return 0.0
        if self.model.axial_pos_emb:
            row, column = divmod(p, self.model.axial_pos_emb[1])
            return self.w["axial_wpe_1"][row] + self.w["axial_wpe_2"][column]
        return self.w["wpe"][p]

    def _block(self, x: np.ndarray, name: str, kind: str) -> np.ndarray:
        half = 0.5 if self.model.macaron else 1.0
        if self.model.macaron:
            x = x + half * self._gain(name, "mac") * self._dense(self._in(x, name, "mac"), f"{name}/mlp_mac")
        if kind != "none":
            x = x + self._gain(name, "1") * self._attention(self._in(x, name, "1"), f"{name}/attn", kind)
        return x + half * self._gain(name, "2") * self._dense(self._in(x, name, "2"), f"{name}/mlp")

    def _in(self, x: np.ndarray, name: str, branch: str) -> np.ndarray:
        return x if self.model.rezero else self._norm(x, f"{name}/norm_{branch}")

    def _gain(self, name: str, branch: str) -> np.ndarray | float:
        return self.w[f"{name}/norm_rezero_{branch}/g"] if self.model.rezero else 1.0

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if self.model.scalenorm:
            return self.w[f"{name}/g"] * x / np.linalg.norm(x, axis=-1, keepdims=True)
        return layer_norm(x, self.w[f"{name}/g"], self.w[f"{name}/b"])

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        name += "/conv1d_main"
        h = x @ self.w[f"{name}/c_fc/kernel"] + self.w[f"{name}/c_fc/bias"]
        h = h[:, 0::2] * self._activation(h[:, 1::2]) if self.model.mlp_glu else self._activation(h)
        return h @ self.w[f"{name}/c_proj/kernel"] + self.w[f"{name}/c_proj/bias"]

    def _activation(self, h: np.ndarray) -> np.ndarray:
        assert self.model.activation_function == "relu"
        return np.maximum(h, 0)

    def _attention(self, x: np.ndarray, name: str, kind: str) -> np.ndarray:
        size, heads = self.model.head_size, []
        for head in range(self.model.n_head):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (x @ self.w[f"{name}/{which}"][:, part] for which in "qkv")
            if self.model.rotary_emb:
                q, k = rotated(q), rotated(k)
            memory = np.zeros((0, size)), np.zeros((0, size))
            if self.model.num_mem_kv:
                memory = self.w[f"{name}/mem_k"][:, part], self.w[f"{name}/mem_v"][:, part]
            rows = []
            for p, query in enumerate(q):
                seen = self._seen(p, len(q), kind)
                keys, values = (np.concatenate([m, t[seen]]) for m, t in zip(memory, (k, v), strict=True))
                if kind != "linear":
                    scores = keys @ query
                    if self.bias:
                        scores[len(memory[0]) :] += self.bias(self.w, head, p - np.array(seen))
                    rows.append(softmax(scores) @ values)
                elif self.causal:
                    rows.append(linear_causal(query, keys, values))
                else:
                    rows.append(softmax(query) @ (softmax(keys.T) @ values))
            heads.append(np.stack(rows))
        return np.concatenate(heads, -1) @ self.w[f"{name}/o"] + self.w[f"{name}/compute_output_bias/o_b"]

    def _seen(self, p: int, n: int, kind: str) -> list[int]:
        radius = self.model.local_attention_radius if kind == "local" else n
        return [j for j in range(n) if abs(p - j) < radius and (j <= p or not self.causal)]


def linear_causal(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What one query [features] makes of the keys and values [positions, features] that it sees."""
    weights = np.exp(keys) @ softmax(query)
    return weights @ values / (weights.sum() + 1e-6)


def rotated(x: np.ndarray) -> np.ndarray:
    """x: [positions, features]; features i and i + half are one complex number, turned by its position."""
    half = x.shape[1] // 2
    frequencies = 10000.0 ** (-2 * np.arange(half) / x.shape[1])
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * np.outer(np.arange(len(x)), frequencies))
    return np.concatenate([turned.real, turned.imag], -1)
