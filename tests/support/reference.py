"""The model, its loss and its optimizer in NumPy float64, written from docs/parameters.md and the papers alone.

As plain as can be (a Python loop over queries, no masks, no batching of heads), so that it shares no idea with the code
under test: Vaswani et al. 2017 for attention, Ba et al. 2016 for layer norm, Hendrycks & Gimpel 2016 for GELU, Kingma &
Ba 2014 and Loshchilov & Hutter 2017 for Adam with decoupled decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gpt_mesh.config import ModelConfig, OptimizerConfig

Arrays = Mapping[str, np.ndarray]


def logits(weights: Arrays, tokens: np.ndarray, model: ModelConfig) -> np.ndarray:
    """[batch, sequence, n_vocab] for tokens [batch, sequence]; weights by their names without `gpt2/`."""
    w = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    return np.stack([_one_row(w, row, model) for row in tokens])


def _one_row(w: Arrays, tokens: np.ndarray, model: ModelConfig) -> np.ndarray:
    x = np.stack([w["wte"][token] + w["wpe"][position] for position, token in enumerate(tokens)])
    for i in range(model.n_layer):
        radius = model.local_attention_radius if model.attention_types[i] == "local" else len(tokens)
        normed = layer_norm(x, w[f"h{i}/norm_1/g"], w[f"h{i}/norm_1/b"])
        x = x + _attention(w, f"h{i}/attn", normed, model.n_head, radius)
        normed = layer_norm(x, w[f"h{i}/norm_2/g"], w[f"h{i}/norm_2/b"])
        x = x + _feed_forward(w, f"h{i}/mlp/conv1d_main", normed, model.activation_function)
    return layer_norm(x, w["ln_f/g"], w["ln_f/b"]) @ w["wte"].T


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + bias


def _attention(w: Arrays, name: str, x: np.ndarray, n_head: int, radius: int) -> np.ndarray:
    size = x.shape[1] // n_head
    columns = [slice(head * size, (head + 1) * size) for head in range(n_head)]
    out = np.zeros_like(x)
    for position in range(len(x)):
        seen = x[max(0, position - radius + 1) : position + 1]
        heads = []
        for part in columns:
            query = x[position] @ w[f"{name}/q"][:, part]
            scores = seen @ w[f"{name}/k"][:, part] @ query
            heads.append(softmax(scores) @ (seen @ w[f"{name}/v"][:, part]))
        out[position] = np.concatenate(heads) @ w[f"{name}/o"]
    return out + w[f"{name}/compute_output_bias/o_b"]


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _feed_forward(w: Arrays, name: str, x: np.ndarray, activation: str) -> np.ndarray:
    h = x @ w[f"{name}/c_fc/kernel"] + w[f"{name}/c_fc/bias"]
    if activation == "gelu":
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    else:
        assert activation == "relu"
        h = np.maximum(h, 0)
    return h @ w[f"{name}/c_proj/kernel"] + w[f"{name}/c_proj/bias"]


def nll_and_log_z(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both [batch, sequence], in nats."""
    top = scores.max(-1)
    log_z = top + np.log(np.exp(scores - top[..., None]).sum(-1))
    return log_z - np.take_along_axis(scores, labels[..., None], -1)[..., 0], log_z


def learning_rate(optimizer: OptimizerConfig, step: int) -> float:
    """At a step, counted from 0."""
    done = min(1.0, step / optimizer.lr_decay_end)
    remaining = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "none": 1.0}[optimizer.lr_decay]
    warmth = min(1.0, step / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
    return warmth * (0.1 * optimizer.lr + 0.9 * optimizer.lr * remaining)


class Adam:
    """Adam without bias correction, on a dict of arrays."""

    def __init__(self, optimizer: OptimizerConfig, weights: Arrays) -> None:
        self.optimizer, self.step = optimizer, 0
        self.weights = {name: np.array(w, np.float64) for name, w in weights.items()}
        self.m = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self.v = {name: np.zeros_like(w) for name, w in self.weights.items()}

    def update(self, gradients: Arrays) -> float:
        """One step; returns the gradients' global norm before clipping."""
        o, lr = self.optimizer, learning_rate(self.optimizer, self.step)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        scale = min(1.0, o.gradient_clipping / norm) if o.gradient_clipping else 1.0
        for name, w in self.weights.items():
            g = gradients[name] * scale
            self.m[name] = o.beta1 * self.m[name] + (1 - o.beta1) * g
            self.v[name] = o.beta2 * self.v[name] + (1 - o.beta2) * g**2
            decay = o.weight_decay * w if w.ndim >= 2 else 0.0
            self.weights[name] = w - lr * (self.m[name] / (np.sqrt(self.v[name]) + o.epsilon) + decay)
        self.step += 1
        return norm
