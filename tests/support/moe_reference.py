"""A mixture of experts in NumPy, token by token, written from the papers alone: Shazeer et al. 2017, and algorithm 1 of
GShard (Lepikhin et al., 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.support.reference import softmax


@dataclass(frozen=True)
class Mixture:
    """Settings and weights. group: tokens of a sequence that compete; capacity: of them, how many an expert takes."""

    gating: np.ndarray
    wi: np.ndarray
    wo: np.ndarray
    group: int
    capacity: int
    policy: str = "all"
    threshold: float = 0.0
    second_place_loss: bool = False

    def __call__(self, x: np.ndarray, draws: np.ndarray | None = None) -> tuple[np.ndarray, float, np.ndarray]:
        """The output [batch, sequence, embd] for x of that shape, the balance loss, and each expert's share of tokens.

        draws: [batch, sequence], of the policy `random`.
        """
        batch, length, _ = x.shape
        y, taken, losses = np.zeros_like(x), np.zeros(len(self.wi)), []
        for row in range(batch):
            for start in range(0, length, self.group):
                part = slice(start, start + self.group)
                draw = np.zeros(self.group) if draws is None else draws[row, part]
                y[row, part], loss, count = self._group(x[row, part], draw)
                losses.append(loss)
                taken += count
        return y, float(np.mean(losses)), taken / (batch * length)

    def _group(self, x: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        gates = softmax(x @ self.gating)
        order = np.argsort(-gates, axis=1, kind="stable")
        count, y = np.zeros(len(self.wi), int), np.zeros_like(x)
        for choice in (0, 1):
            for token, experts in enumerate(order):
                expert = experts[choice]
                pair = gates[token, experts[:2]]
                gate = pair[choice] / pair.sum()
                if choice == 1 and not self._goes_to_second(gate, draws[token]):
                    continue
                if count[expert] < self.capacity:
                    count[expert] += 1
                    y[token] += gate * (np.maximum(x[token] @ self.wi[expert], 0) @ self.wo[expert])
        loss = self._loss(gates, order[:, 0])
        if self.second_place_loss:
            others = gates.copy()
            others[np.arange(len(x)), order[:, 0]] = 0
            loss += 0.5 * self._loss(others, order[:, 1])
        return y, loss, count

    def _goes_to_second(self, gate: float, draw: float) -> bool:
        return {
            "all": True,
            "none": False,
            "threshold": gate > self.threshold,
            "random": gate > draw * self.threshold,
        }[self.policy]

    @staticmethod
    def _loss(gates: np.ndarray, chosen: np.ndarray) -> float:
        tokens, experts = gates.shape
        share = np.bincount(chosen, minlength=experts) / tokens
        return float(experts * (gates.mean(0) * share).sum())


def silu(x: np.ndarray) -> np.ndarray:
    """x times its sigmoid."""
    return x / (1 + np.exp(-x))


@dataclass(frozen=True)
class TopK:
    """Mixtral (arXiv:2401.04088) and OLMoE (arXiv:2409.02060), token by token: gated experts with SiLU.

    weights: by name, as a `MixtureLayer` has them; capacity: tokens of a sequence that an expert takes, first choices
    before second ones.
    """

    weights: dict[str, np.ndarray]
    count: int
    normalised: bool = True
    capacity: int | None = None

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """The output [batch, sequence, embd], the balance loss, and each expert's share of tokens."""
        found = [self._sequence(row) for row in x]
        loss = float(np.mean([loss for _, loss, _ in found]))
        return np.stack([y for y, _, _ in found]), loss, np.mean([taken for _, _, taken in found], 0) / x.shape[1]

    def _sequence(self, x: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        gates = softmax(x @ self.weights["gating/kernel"])
        order = np.argsort(-gates, axis=1, kind="stable")[:, : self.count]
        y, taken = np.zeros_like(x), np.zeros(gates.shape[1], int)
        for choice in range(self.count):
            for token, chosen in enumerate(order):
                expert = chosen[choice]
                weight = gates[token, expert] / (gates[token, chosen].sum() if self.normalised else 1)
                if self.capacity is None or taken[expert] < self.capacity:
                    taken[expert] += 1
                    y[token] += weight * self._network("experts", x[token], expert)
        if "shared/wi" in self.weights:
            y += self._network("shared", x)
        shares = np.bincount(order.ravel(), minlength=gates.shape[1]) / len(x)
        return y, float(gates.shape[1] * (gates.mean(0) * shares).sum()), taken

    def _network(self, name: str, x: np.ndarray, expert: int | None = None) -> np.ndarray:
        wi, wg, wo = (self.weights[f"{name}/{part}"] for part in ("wi", "wg", "wo"))
        if expert is not None:
            wi, wg, wo = wi[expert], wg[expert], wo[expert]
        return (silu(x @ wg) * (x @ wi)) @ wo
