"""Spectral regularization: each weight's largest singular value is pulled to a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis, split_heads
from gsr_kernels.checks import check_choice, check_number
from gsr_kernels.methods.base import Heads, Matrices, Method, State, finite_matrices, wide

Target = Literal["one", "initial"]

# power iterations before the first step, from random vectors; afterwards one a step keeps up with the weight
START = 20


@dataclass(frozen=True)
class SR(Method):
    """Penalty ``lam (σ_max^k − t^k)²`` of each weight, as a term of its gradient ("Learning Continually by Spectral
    Regularization", arXiv 2406.06811):

        2 lam k σ^(k−1) (σ^k − t^k) u vᵀ

    with u, σ, v from power iteration, one a step, kept from step to step. It is added once per optimizer step, after
    any clipping and before the methods that come after it. The paper's term for biases is left out: this acts on
    matrices.

    Args:
        lam: its strength, at least 0. GSR's paper tried 1e-3, 1e-6 and 1e-9, and reports 1e-9.
        k: at least 1.
        target: "one" (the paper), t = 1; "initial", t = σ_max when the task begins.

    Raises ValueError where one is out of range, and in a step where no weight has a gradient.
    """

    lam: float = 1e-9
    k: float = 2
    target: Target = "one"

    uses_basis = False
    lasting = ("u", "v", "target")

    def __post_init__(self) -> None:
        check_number("lam", self.lam, 0)
        check_number("k", self.k, 1)
        check_choice("target", self.target, Target)

    def decompose(self, name: str, W: Tensor, rank: int | None, heads: Heads) -> SpectralBasis:
        """Return the first direction alone, by power iteration: no decomposition is needed."""
        if rank is not None:
            raise ValueError("rank is not a setting of SR, which follows the largest singular value alone")
        matrix, head_dim = split_heads(W, heads)
        state = _largest(matrix)
        factors = state["u"].unsqueeze(-1), state["sigma"].unsqueeze(-1), state["v"].unsqueeze(-2)
        return SpectralBasis(*factors, head_dim=head_dim)

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        state = _largest(W)
        initial = state.pop("sigma")
        return {**state, "target": initial if self.target == "initial" else torch.ones_like(initial)}

    def transform(self, matrices: Matrices, scale: Tensor | None = None) -> list[Tensor]:
        if not matrices:
            raise ValueError("SR: no weight of the model has a gradient: call backward() before optimizer.step()")
        flags = []
        for G, W, _, state in matrices:
            sigma = _iterate(W.to(state["v"].dtype), state)
            size = 2 * self.lam * self.k * sigma ** (self.k - 1) * (sigma**self.k - state["target"] ** self.k)
            if scale is not None:
                size = size * scale
            finite = finite_matrices(G)
            column = (size.where(finite, 0).unsqueeze(-1) * state["u"]).unsqueeze(-1)
            G.addcmul_(column, state["v"].unsqueeze(-2))
            flags.append(finite)
        return flags


def _largest(W: Tensor) -> State:
    """Return u, sigma and v of W's largest singular value, in float32 or better."""
    W = wide(W)
    # a generator of its own: attach() must not shift what training draws
    start = torch.randn(W.shape[-1], generator=torch.Generator().manual_seed(0), dtype=W.dtype).to(W.device)
    v = torch.nn.functional.normalize(start, dim=0).expand(*W.shape[:-2], -1).clone()
    state = {"u": W.new_zeros(W.shape[:-1]), "v": v}
    for _ in range(START):
        sigma = _iterate(W, state)
    return {**state, "sigma": sigma}


def _iterate(W: Tensor, state: State) -> Tensor:
    """Do one power iteration on ``u [.., d1]`` and ``v [.., d2]`` in place; return ``σ = uᵀ W v [..]``."""
    u, v = state["u"], state["v"]
    for out, image in ((u, lambda: W @ v.unsqueeze(-1)), (v, lambda: W.mT @ u.unsqueeze(-1))):
        moved = image().squeeze(-1)
        size = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
        # a zero weight has no direction to turn to
        out.copy_(torch.where(size > 0, moved / torch.where(size > 0, size, 1), out))
    return size.squeeze(-1)
