"""Gradient Spectrum Rescaling in the singular basis of a weight as its inputs see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gsr_kernels.backends.torch.products import product
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import check_kind, check_rho
from gsr_kernels.messages import some
from gsr_kernels.methods.base import Heads, Method, State
from gsr_kernels.methods.projections import operands
from gsr_kernels.ops import implementation


@dataclass(frozen=True)
class DataAwareGSR(Method):
    """GSR in the basis of ``W D``, D the size of each input feature (named by the paper as future work, after ASVD):

        g = diag(Uᵀ (G D⁻¹) V)        G' = G + U diag(g' − g) Vh D

    What the basis does not span is left as it is; rho = 0 is the identity.

    Args:
        rho: in [0, 1]; 0 leaves the components as they are, 1 shares their energy out by σ alone.
        input_scale: the diagonal of D ``[d2] > 0`` by parameter name, as ``input_scales`` measures it.

    Raises ValueError where either is out of range, and in attach() for a weight without an entry.
    """

    # that of W D
    own_basis = True
    # D, of which later inputs would give another
    lasting = ("scale",)

    rho: float
    input_scale: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        check_rho(self.rho)
        check_kind(Mapping, "{parameter name: tensor}", input_scale=self.input_scale)
        for name, scale in self.input_scale.items():
            check_kind(Tensor, "a tensor", **{f"input_scale of {name}": scale})
            if not (scale.isfinite() & (scale > 0)).all():
                raise ValueError(f"input_scale of {name} must be positive and finite")

    def decompose(self, name: str, W: Tensor, rank: int | None, heads: Heads) -> SpectralBasis:
        if name not in self.input_scale:
            raise ValueError(
                f"input_scale has no entry for it, but for {some(self.input_scale)}: input_scales() measures nn.Linear "
                "alone; leave the weight out by targets=list(scales), or give an entry of your own"
            )
        scale = self.input_scale[name]
        if scale.shape != W.shape[-1:]:
            raise ValueError(f"input_scale must be [{W.shape[-1]}], an element a column, got {[*scale.shape]}")
        return super().decompose(name, W * scale.to(W.device), rank, heads)

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """Return D as the matrices of the basis meet it, ``[.., 1, d2]``."""
        whole = self.input_scale[name].to(W.device).expand(basis.weight_shape)
        return {"scale": basis.split(whole)[..., :1, :].clone()}

    def gradient(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State) -> Tensor:
        wide, U, Vh = operands(G, basis)
        scale = state["scale"].to(wide.dtype)
        g = product(wide / scale, Vh.mT).mul_(U).sum(-2)
        delta = implementation("rescale")(g, basis.S, self.rho) - g
        return wide + product(U * delta.unsqueeze(-2), Vh * scale)
