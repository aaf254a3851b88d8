"""Gradient Spectrum Rescaling of adapters: GSR's correction of a gradient that is never formed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from gsr_kernels.adapters.factors import Factors, by_shape, find_factors, stacked
from gsr_kernels.backends.torch.products import without_autocast
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import check_choice, check_rho
from gsr_kernels.methods.base import wide
from gsr_kernels.methods.on_model import BoundMethod, ModelMethod
from gsr_kernels.ops import implementation
from gsr_kernels.reference import FLOOR

Spectrum = Literal["adapter", "base"]


@dataclass(frozen=True)
class AdapterGSR(ModelMethod):
    """GSR of ``W + s B A`` through the gradients of B and A.

    G, the gradient of the weight, is never formed. GSR keeps what a basis does not span of it, and adds
    ``U diag(δ) Vh`` with δ = g' − g of equation (7). What the factors would have been given then is

        ∂B += s (U diag(δ)) (Vh Aᵀ)        ∂A += s (Bᵀ U) (diag(δ) Vh)

    and g comes from what is there:

        "adapter"   the basis of ``s B A`` at every step, by thin QRs; ``g_i = u_iᵀ ∂B c_i / s`` with ``v_i = Aᵀ c_i``
        "base"      the basis of the frozen W; ``g_i = Σ_t (u_iᵀ dy_t) (v_iᵀ x_t)`` over all micro-batches' tokens

    While B is 0, as at the start, "adapter" has no direction and does nothing: ``scalars()`` counts that. Scaled and
    clipped gradients give a scaled correction.

        handle = attach(model, optimizer, AdapterGSR(rho=0.5))

    Args:
        rho: in [0, 1]; 0 changes nothing.
        spectrum: "adapter" or "base".
        adapter: by default the last one that was added.
        rank: directions of W's basis, for "base"; None: all, which costs as much as the frozen layers' forward pass.

    Raises ValueError for settings out of range. In ``attach`` it raises TypeError and ValueError for adapters that are
    not supported, and ValueError for "base" where processes train together.
    """

    rho: float
    spectrum: Spectrum = "adapter"
    adapter: str | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        check_rho(self.rho)
        check_choice("spectrum", self.spectrum, Spectrum)
        if self.spectrum == "adapter" and self.rank is not None:
            raise ValueError("rank is a setting of spectrum='base': the adapter's basis has its rank")

    def bind(self, model: nn.Module) -> BoundMethod:
        """Return the method on a PEFT model, or one with PEFT's adapters injected."""
        factors = find_factors(model, self.adapter)
        return _OfAdapter(factors, self.rho) if self.spectrum == "adapter" else _OfBase(factors, self.rho, self.rank)


class _OfSpectrum(BoundMethod, ABC):
    """GSR on one adapter; subclasses say which basis, and how g is found."""

    name = "AdapterGSR"

    def __init__(self, factors: list[Factors], rho: float) -> None:
        self.factors, self.rho = factors, rho
        self.parameters = [factor for one in factors for factor in (one.A, one.B)]
        self.counts: dict[str, Tensor | int] = {"inactive_directions": 0, "skipped_nonfinite": 0}

    def scalars(self) -> dict[str, float]:
        """Count, in the last step, directions without a σ, and modules left alone since g was not finite."""
        return {f"gsr/{name}": float(count) for name, count in self.counts.items()}

    def act(self, optimizer: Optimizer) -> None:
        self.counts = dict.fromkeys(self.counts, 0)
        self.correct([one for one in self.factors if one.A.grad is not None and one.B.grad is not None])

    @abstractmethod
    def correct(self, present: list[Factors]) -> None:
        """Add the correction to the gradients of modules, all of which have some."""

    def deltas(self, g: Tensor, S: Tensor) -> Tensor:
        """Return δ = g' − g ``[n, k]``, zero for a module whose g is not finite, and count."""
        finite = g.isfinite().all(-1, keepdim=True)
        self.counts["inactive_directions"] += (FLOOR * S.amax(-1, keepdim=True) >= S).sum()
        self.counts["skipped_nonfinite"] += (~finite).sum()
        return torch.where(finite, implementation("rescale", "auto", g.device)(g, S, self.rho) - g, 0)


class _OfAdapter(_OfSpectrum):
    """Thin SVD of s B A: with ``s B = Q_B R_B`` and ``Aᵀ = Q_A R_A`` that of the r × r core ``R_B R_Aᵀ``."""

    def correct(self, present: list[Factors]) -> None:
        for rows in by_shape([one] for one in present):
            group = [row[0] for row in rows]
            B, A = (wide(factor) for factor in stacked(group))
            scaling = A.new_tensor([one.scaling for one in group])[:, None, None]
            gradient = torch.stack([one.B.grad for one in group]).to(B.dtype)  # type: ignore[misc]
            (Q_B, R_B), (Q_A, R_A) = torch.linalg.qr(B), torch.linalg.qr(A.mT)
            left, S, right = torch.linalg.svd(R_B @ R_A.mT)
            U = Q_B @ left
            # a singular A gives what is not finite, and its module is left alone
            C = torch.linalg.solve_triangular(R_A, right.mT, upper=True)
            g = (U * (gradient @ C)).sum(-2) / scaling.squeeze(-1)
            delta = self.deltas(g, S).unsqueeze(-2)
            # Vh Aᵀ = rightᵀ R_A and s Bᵀ U = R_Bᵀ left
            grad_B = scaling * ((U * delta) @ (right @ R_A))
            grad_A = (R_B.mT @ left * delta) @ (Q_A @ right.mT).mT
            for i, one in enumerate(group):
                one.B.grad.add_(grad_B[i])  # type: ignore[union-attr]
                one.A.grad.add_(grad_A[i])  # type: ignore[union-attr]


class _OfBase(_OfSpectrum):
    """Basis of each frozen weight, taken once; g is summed up while the model runs."""

    def __init__(self, factors: list[Factors], rho: float, rank: int | None) -> None:
        super().__init__(factors, rho)
        self._bases = {
            one.name: SpectralBasis.of(one.weight, rank, precision="fp64" if one.A.dtype == torch.float64 else "fp32")
            for one in tqdm(factors, "singular bases", unit="matrix", leave=False, disable=None)
        }
        # of each module g, and the part of ∂B that tells what became of the gradients on their way to the step
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        # of each module what its lora_A gave for the tokens of this pass, which have gone through dropout
        self._inner: dict[str, Tensor] = {}

    def prepare(self, optimizer: Optimizer) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ValueError(
                "spectrum='base' sums over one process's tokens, and several train together: use spectrum='adapter'"
            )
        super().prepare(optimizer)

    def watch(self) -> list[RemovableHandle]:
        return [hook for one in self.factors for hook in self._listen(one)]

    def _listen(self, one: Factors) -> list[RemovableHandle]:
        def hear_inner(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._inner[one.name] = output.detach()

        def hear(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # not where activation checkpointing runs the module again: what another use of it summed is of this pass
            if torch._C._current_graph_task_id() == -1:
                self._begin(one)
            inner = self._inner.pop(one.name, None)
            if output.requires_grad and inner is not None:
                x = args[0].detach()
                output.register_hook(lambda gradient: self._add(one, x, inner, gradient))

        return [one.inner.register_forward_hook(hear_inner), one.layer.register_forward_hook(hear)]

    def _begin(self, one: Factors) -> None:
        """Begin a new sum where ∂B is gone, or zeroed in place: a step was taken, or skipped."""
        if one.B.grad is None:
            self._sums.pop(one.name, None)
        elif one.name in self._sums:
            # on the device: nothing waits
            going_on = one.B.grad.any()
            g, probe = self._sums[one.name]
            self._sums[one.name] = torch.where(going_on, g, 0), torch.where(going_on, probe, 0)

    @torch.no_grad()
    @without_autocast()
    def _add(self, one: Factors, x: Tensor, inner: Tensor, gradient: Tensor) -> None:
        basis = self._bases[one.name]
        x, inner, gradient = (t.reshape(-1, t.shape[-1]).to(basis.U.dtype) for t in (x, inner, gradient))
        left = gradient @ basis.U
        g, probe = self._sums.get(one.name, (0, 0))
        self._sums[one.name] = g + (left * (x @ basis.Vh.mT)).sum(0), probe + left.sum(-1) @ inner

    def correct(self, present: list[Factors]) -> None:
        for one in present:
            if one.name not in self._sums:
                continue
            basis = self._bases[one.name]
            U, S, Vh = basis.U, basis.S, basis.Vh
            g, probe = self._sums.pop(one.name)
            # whatever divided, clipped or averaged the gradients since did the same to this part of ∂B
            arrived = U.sum(-1) @ one.B.grad.to(U.dtype) / one.scaling  # type: ignore[union-attr]
            size = probe.square().sum()
            factor = torch.where(size > 0, (arrived * probe).sum() / torch.where(size > 0, size, 1), 0)
            delta = self.deltas((factor * g).unsqueeze(0), S.unsqueeze(0)).squeeze(0)
            B, A = one.B.to(U.dtype), one.A.to(U.dtype)
            one.B.grad.add_(one.scaling * ((U * delta) @ (Vh @ A.mT)))  # type: ignore[union-attr]
            one.A.grad.add_(one.scaling * ((B.mT @ U * delta) @ Vh))  # type: ignore[union-attr]
