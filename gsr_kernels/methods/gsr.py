"""Gradient Spectrum Rescaling."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import OutOfSpan, check_out_of_span, check_rho
from gsr_kernels.methods.base import Matrices, Method
from gsr_kernels.ops import backend_for

if TYPE_CHECKING:
    from gsr_kernels.backends.triton.plan_cache import Steps


@dataclass(frozen=True)
class GSR(Method):
    """Singular components of the gradient, rescaled inside their sign group (paper, equations 2, 3, 7, 8).

    Args:
        rho: in [0, 1]; 0 leaves the components as they are, 1 shares their energy out by σ alone.
        out_of_span: "drop" (the paper's (8)) loses what U and Vh do not span, "keep" leaves it as it is. None: "drop"
            where attach() is given no rank, else "keep", for all weights.

    Raises ValueError where either is out of range.
    """

    rho: float
    out_of_span: OutOfSpan | None = None

    def __post_init__(self) -> None:
        check_rho(self.rho)
        check_out_of_span(self.out_of_span)

    def transform(self, matrices: Matrices, scale: Tensor | None = None) -> list[Tensor]:
        mode = self.out_of_span or "drop"
        flags: dict[int, Tensor] = {}
        planned: dict[tuple[torch.device, str], list[int]] = {}
        for i, (G, _, basis, _) in enumerate(matrices):
            asked = G.device, G.dtype, G.numel() > 0
            known = _decided.get(basis)
            if known is None or known[:2] != (mode, asked):
                form = G.device, G.dtype, basis.U.dtype, basis.dims, mode
                backend = backend_for("step", *form)[0] if G.numel() else "torch"
                known = _decided[basis] = mode, asked, backend
            if known[2] != "torch":
                planned.setdefault((G.device, known[2]), []).append(i)
            else:
                flags[i] = rescale_gradient(G, basis.U, basis.S, basis.Vh, self.rho, mode, G).isfinite().all(-1)
        for (_, backend), chosen in planned.items():
            gradients, _, bases, _ = zip(*(matrices[i] for i in chosen))
            flags |= zip(chosen, steps(self, backend).run(gradients, bases))
        return [flags[i] for i in range(len(matrices))]


def steps(method: GSR, backend: str) -> Steps:
    """Return the kernels' steps of a method, made when they are first wanted: Triton is imported with them."""
    from gsr_kernels.backends.triton.plan_cache import Steps

    made = _steps.setdefault(method, {})
    if backend not in made:
        made[backend] = Steps(method.rho, method.out_of_span or "drop", backend)
    return made[backend]


# who computes the step of a basis, asked once for each kind of gradient
_decided: MutableMapping[SpectralBasis, tuple[str, tuple[torch.device, torch.dtype, bool], str]] = WeakIdKeyDictionary()
# not fields of the method, which is copied and compared by its settings: they go when it goes
_steps: MutableMapping[GSR, dict[str, Steps]] = WeakIdKeyDictionary()
