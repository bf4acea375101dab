"""The block variants in NumPy float64, written from the papers alone, one head and one query at a time.

Linear attention: Shen et al. 2018 (both directions), Katharopoulos et al. 2020 (causal). Learned keys and values:
Sukhbaatar et al. 2019. Rotary: Su et al. 2021, scaled: Chen et al. 2023, Peng et al. 2023. ALiBi: Press et al. 2022.
Axial positions: Kitaev et al. 2020. GLU: Shazeer 2020. Macaron: Lu et al. 2019. ReZero: Bachlechner et al. 2020.
ScaleNorm: Nguyen & Salazar 2019. RMSNorm: Zhang & Sennrich 2019. Norms after the branches: OLMo 2 and Gemma 2. Parallel
branches: GPT-J. Shared heads of keys and values: Shazeer 2019, Ainslie et al. 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpt_mesh.config import Config, ModelConfig
from tests.support.reference import Arrays, softmax

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
        x = np.stack([self._embedding(token) + self._position(p) for p, token in enumerate(tokens)])
        for i in range(self.model.n_layer):
            x = self._block(x, "h0" if self.model.share_parameters else f"h{i}", self.model.attention_types[i])
        out = self.w["linear_out/kernel"] if self.model.no_weight_tie else self.w["wte"].T
        scores = self._norm(x, "ln_f") @ out + (self.w["linear_out/bias"] if self.model.lm_head_bias else 0.0)
        cap = self.model.final_logit_softcapping
        return cap * np.tanh(scores / cap) if cap else scores

    def _embedding(self, token: int) -> np.ndarray:
        x = self.w["wte"][token] * (self.model.embedding_scale or 1.0)
        return self._norm(x, "embed_norm") if self.model.embed_norm else x

    def _position(self, p: int) -> np.ndarray | float:
        if self.model.pos_emb in ("rotary", "alibi", "none") or self.bias:
            return 0.0
        if self.model.pos_emb == "axial":
            assert self.model.axial_pos_emb
            row, column = divmod(p, self.model.axial_pos_emb[1])
            return self.w["axial_wpe_1"][row] + self.w["axial_wpe_2"][column]
        return self.w["wpe"][p]

    def _block(self, x: np.ndarray, name: str, kind: str) -> np.ndarray:
        half = 0.5 if self.model.macaron else 1.0
        if self.model.macaron:
            x = x + half * self._out(self._dense(self._in(x, name, "mac"), f"{name}/mlp_mac"), name, "mac")
        y = np.zeros_like(x)
        if kind != "none":
            y = self._out(self._attention(self._in(x, name, "1"), f"{name}/attn", kind), name, "1")
        reads = self._in(x if self.model.gpt_j_residual else x + y, name, "1" if self.model.gpt_j_tied else "2")
        return x + y + half * self._out(self._dense(reads, f"{name}/mlp"), name, "2")

    def _in(self, x: np.ndarray, name: str, branch: str) -> np.ndarray:
        as_it_is = self.model.rezero or self.model.norm_placement == "post"
        return x if as_it_is else self._norm(x, f"{name}/norm_{branch}")

    def _out(self, y: np.ndarray, name: str, branch: str) -> np.ndarray:
        if self.model.rezero:
            return self.w[f"{name}/norm_rezero_{branch}/g"] * y
        return y if self.model.norm_placement == "pre" else self._norm(y, f"{name}/norm_{branch}_post")

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if self.model.norm == "none":
            return x
        gain, mean = self.w[f"{name}/g"], x.mean(-1, keepdims=True)
        if self.model.norm == "scalenorm":
            return gain * x / np.linalg.norm(x, axis=-1, keepdims=True)
        if self.model.norm == "rmsnorm":
            return self._rms_norm(x, name)
        normal = (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + self.model.norm_epsilon)
        return normal * gain + (self.w[f"{name}/b"] if self.model.use_bias_in_norms else 0.0)

    def _rms_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return self.w[f"{name}/g"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + self.model.norm_epsilon)

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        h = self._affine(x, f"{name}/conv1d_main/c_fc")
        if not self.model.mlp_glu:
            h = self._activation(h)
        elif self.model.glu_columns == "separate":
            h = h * self._activation(self._affine(x, f"{name}/conv1d_main/c_gate"))
        else:
            h = h[:, 0::2] * self._activation(h[:, 1::2])
        return self._affine(h, f"{name}/conv1d_main/c_proj")

    def _affine(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}/kernel"] + (self.w[f"{name}/bias"] if self.model.use_bias_in_mlp else 0.0)

    def _activation(self, h: np.ndarray) -> np.ndarray:
        name = self.model.activation_function
        if name == "silu":
            return h / (1 + np.exp(-h))
        if name == "gelu_exact":
            return h * (1 + np.vectorize(math.erf)(h / math.sqrt(2))) / 2
        assert name == "relu"
        return np.maximum(h, 0)

    def _attention(self, x: np.ndarray, name: str, kind: str) -> np.ndarray:
        size, heads = self.model.head_dim, []
        for head in range(self.model.n_head):
            shared = head * self.model.num_kv_heads // self.model.n_head  # of keys and values
            own, part = (slice(n * size, (n + 1) * size) for n in (head, shared))
            q, k, v = (self._projected(x, f"{name}/{which}", own if which == "q" else part) for which in "qkv")
            if self.model.qk_norm:
                q, k = self._rms_norm(q, f"{name}/q_norm"), self._rms_norm(k, f"{name}/k_norm")
            if self.model.pos_emb == "rotary":
                q, k = rotated(q, self.model), rotated(k, self.model)
            memory = np.zeros((0, size)), np.zeros((0, size))
            if self.model.num_mem_kv:
                memory = self.w[f"{name}/mem_k"][:, part], self.w[f"{name}/mem_v"][:, part]
            rows = []
            for p, query in enumerate(q):
                seen = self._seen(p, len(q), kind)
                keys, values = (np.concatenate([m, t[seen]]) for m, t in zip(memory, (k, v), strict=True))
                if kind != "linear":
                    scores = keys @ (query / math.sqrt(size) if self.model.scale_attn_weights else query)
                    if self.bias:
                        scores[len(memory[0]) :] += self.bias(self.w, head, p - np.array(seen))
                    if self.model.pos_emb == "alibi":
                        scores[len(memory[0]) :] -= slope(head, self.model.n_head) * abs(p - np.array(seen))
                    rows.append(softmax(scores) @ values)
                elif self.causal:
                    rows.append(linear_causal(query, keys, values))
                else:
                    rows.append(softmax(query) @ (softmax(keys.T) @ values))
            heads.append(np.stack(rows))
        out = np.concatenate(heads, -1) @ self.w[f"{name}/o"]
        return out if self.model.use_bias_in_attn_linear is False else out + self.w[f"{name}/compute_output_bias/o_b"]

    def _projected(self, x: np.ndarray, name: str, columns: slice) -> np.ndarray:
        found = x @ self.w[name][:, columns]
        return found + self.w[f"{name}_b"][columns] if self.model.use_bias_in_qkv else found

    def _seen(self, p: int, n: int, kind: str) -> list[int]:
        radius = self.model.local_attention_radius if kind == "local" else n
        return [j for j in range(n) if abs(p - j) < radius and (j <= p or not self.causal)]


def linear_causal(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What one query [features] makes of the keys and values [positions, features] that it sees."""
    weights = np.exp(keys) @ softmax(query)
    return weights @ values / (weights.sum() + 1e-6)


def slope(head: int, heads: int) -> float:
    """Of ALiBi; for a number of heads that is no power of 2, as footnote 5 of the paper has it."""
    power = 2 ** math.floor(math.log2(heads))
    if head < power:
        return 2.0 ** (-8 * (head + 1) / power)
    return slope(2 * (head - power), 2 * power)


def rotated(x: np.ndarray, model: ModelConfig) -> np.ndarray:
    """x: [positions, features]; two features are one complex number, turned by its position."""
    n, size = round(x.shape[1] * model.rotary_pct), x.shape[1]
    first = [2 * i if model.rotary_interleaved else i for i in range(n // 2)]
    second = [2 * i + 1 if model.rotary_interleaved else n // 2 + i for i in range(n // 2)]
    turns, magnitude = frequencies(model, n)
    found = np.array(x)
    numbers = (x[:, first] + 1j * x[:, second]) * np.exp(1j * np.outer(np.arange(len(x)), turns)) * magnitude
    found[:, first], found[:, second] = numbers.real, numbers.imag
    assert found.shape[1] == size
    return found


def frequencies(model: ModelConfig, n: int) -> tuple[list[float], float]:
    """Radians a position for each pair of n features, and what they are multiplied by."""
    base, scaling = model.rotary_emb_base, model.rope_scaling
    plain = [base ** (-2 * i / n) for i in range(n // 2)]
    if scaling is None:
        return plain, 1.0
    factor, context = scaling.factor, scaling.original_max_position_embeddings or model.n_ctx
    if scaling.rope_type == "linear":
        return [f / factor for f in plain], 1.0
    if scaling.rope_type == "dynamic":
        longer = base * (factor * model.n_ctx / context - (factor - 1)) ** (n / (n - 2))
        return [longer ** (-2 * i / n) for i in range(n // 2)], 1.0
    if scaling.rope_type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        assert low and high
        periods = [context * f / (2 * math.pi) for f in plain]
        kept = [0 if p < low else 1 if p > high else (p - low) / (high - low) for p in periods]
        return [f * (g + (1 - g) / factor) for f, g in zip(plain, kept, strict=True)], 1.0
    # The feature that turns r times in the context; a ramp between two of them.
    ends = [n * math.log(context / (2 * math.pi * r)) / (2 * math.log(base)) for r in (32, 1)]
    begin, end = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), n - 1)
    kept = [1 - min(1, max(0, (i - begin) / ((end - begin) or 0.001))) for i in range(n // 2)]
    return [f * (g + (1 - g) / factor) for f, g in zip(plain, kept, strict=True)], 0.1 * math.log(factor) + 1
