"""A method and a metric of one's own, in the command and in a training loop.

python examples/own_method.py
"""

from dataclasses import dataclass

import torch

from gsr_kernels import attach
from gsr_kernels.methods import Method


@dataclass(frozen=True)
class Damped(Method):
    """Gradients are smaller along the weight's largest singular directions, by ``1 − strength · (σ / σ_max)``."""

    strength: float = 0.5

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {self.strength}")

    def prepare(self, name, W, basis):
        """Keep one factor for each direction during the task; ``W`` is ``[.., d1, d2]``."""
        return {"factors": 1 - self.strength * basis.S / basis.S.amax(-1, keepdim=True)}

    def gradient(self, G, W, basis, state):
        """Return the gradient that the optimizer is given in place of ``G [.., d1, d2]``."""
        inside = basis.U.mT @ G
        return G + basis.U @ (state["factors"].unsqueeze(-1) * inside - inside)


@dataclass(frozen=True)
class Noisy(Method):
    """Gradients with noise of a share of their own size: no basis, so nothing is decomposed."""

    uses_basis = False

    share: float = 0.01

    def gradient(self, G, W, basis, state):
        return G + self.share * G.std() * torch.randn_like(G)


def first_letter(row, answer):
    """answers that begin as the completion does"""
    return float(answer.strip()[:1] == row.completion.strip()[:1])


if __name__ == "__main__":
    from tiny import tiny_llama

    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    print(attach(model, optimizer, Damped(0.9)))
