"""EBLoRA: what a task begins with, and the inputs that it leaves protected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from gsr_kernels.adapters.factors import Factors, find_factors
from gsr_kernels.adapters.riemannian import RiemannianAdamW
from gsr_kernels.checks import check_kind, check_number
from gsr_kernels.linalg import svd
from gsr_kernels.linalg.polar import away, polar_factor
from gsr_kernels.methods.on_model import BoundMethod, Loss, ModelMethod, mean_over_batches

# a singular value below this share of the gradient's norm is rounding
ROUNDING = 1e-5


class EBLoRA(ModelMethod):
    """Adapters with equal singular values, away from the input directions F that earlier tasks used ("Spectral
    Imbalance Causes Forgetting in Low-Rank Continual Adaptation", arXiv 2602.00722):

        eblora = EBLoRA()
        for task in tasks:
            model = get_peft_model(base, lora)
            optimizer = RiemannianAdamW(find_factors(model))
            handle = attach(model, optimizer, eblora)
            handle.start_task(task.batches, loss)
            ...                                # the task is trained
            handle.finish_task()
            base = model.merge_and_unload()

    ``ΔW = scaling · s Q A``, with Q's columns and A's rows orthonormal and ``A F = 0``: all r singular values are
    equal, and inputs inside F are mapped as before. ``start_task`` begins a fresh adapter at ``s = 0`` with the top r
    singular pairs of ``(I − F Fᵀ) Gᵀ``. G is the mean of the frozen weights' gradients over all processes' batches. The
    public code takes a fifth of the task. ``finish_task`` lets F grow by what follows from the same G.

    Args:
        energy: the share of a task's gradient, in squares, that F holds after it; in (0, 1].
        protected: F ``[d_in, p]`` of earlier tasks by the name of the module, orthonormal columns.

    Raises ValueError where energy is out of range; in ``attach`` TypeError for another optimizer.
    """

    remembers = ("protected", "grown")

    def __init__(self, energy: float = 0.99, protected: Mapping[str, Tensor] | None = None) -> None:
        check_number("energy", energy, 0, 1, above=True)
        self.energy = energy
        check_kind(Mapping | None, "{module name: tensor}", protected=protected)
        self.protected: dict[str, Tensor] = dict(protected or {})
        # what F will be when the task ends
        self.grown: dict[str, Tensor] = {}

    def bind(self, model: nn.Module) -> BoundMethod:
        return _BoundEBLoRA(self, model)

    def begin(self, model: nn.Module, batches: Iterable[Any], loss: Loss, **settings: Any) -> RiemannianAdamW:
        """Return ``RiemannianAdamW(find_factors(model), **settings)`` that ``start_task`` has begun, without a handle.

        For a loop that saves nothing on the way: a handle's ``state_dict`` remembers the task that has begun.
        """
        optimizer = RiemannianAdamW(find_factors(model), **settings)
        bound = self.bind(model)
        bound.prepare(optimizer)
        bound.start_task(optimizer, batches, loss)
        return optimizer

    def end(self) -> None:
        """Let F hold ``energy`` of the task's gradient from now on. Without a task that has begun nothing happens."""
        self.protected.update(self.grown)
        self.grown = {}

    def __repr__(self) -> str:
        return f"EBLoRA(energy={self.energy:g}, protecting inputs of {len(self.protected)} modules)"


class _BoundEBLoRA(BoundMethod):
    # the optimizer does its steps
    acts = False
    name = "EBLoRA"

    def __init__(self, method: EBLoRA, model: nn.Module) -> None:
        self._method, self._model = method, model
        self.parameters = []

    def prepare(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, RiemannianAdamW):
            kind = type(optimizer).__name__
            raise TypeError(f"optimizer: EBLoRA steps by RiemannianAdamW(find_factors(model)), got {kind}")
        held = {id(parameter) for parameter in self._model.parameters()}
        if strange := [one.name for one in optimizer.factors if id(one.A) not in held]:
            raise ValueError(f"optimizer steps factors of {strange[0]} that are not the model's: build it anew")
        optimizer.protect(self._method.protected)

    def start_task(self, optimizer: Optimizer, batches: Iterable[Any], loss: Loss) -> None:
        """Begin the adapter. Raises ValueError where it is not fresh, or r directions do not fit beside F."""
        assert isinstance(optimizer, RiemannianAdamW)
        for one in optimizer.factors:
            if one.B.any():
                raise ValueError(f"adapter has learned already at {one.name}: a task begins with a fresh one")
        gradients = average_gradients(self._model, optimizer.factors, batches, loss)
        starts, grown = {}, {}
        for one in tqdm(optimizer.factors, "gradients' directions", unit="matrix", leave=False, disable=None):
            G = gradients.pop(one.name)
            F = self._method.protected.get(one.name, G.new_zeros(G.shape[1], 0)).to(G)
            if one.rank > min(G.shape[1] - F.shape[1], G.shape[0]):
                raise ValueError(
                    f"r = {one.rank} does not fit into {one.name}, {G.shape[0]} x {G.shape[1]}, beside {F.shape[1]} "
                    "protected directions: take a smaller r or less energy"
                )
            # the signs of singular vectors are arbitrary, and replicas must agree
            A, Q, more = map(_of_first_rank, _directions(G, F, one.rank, self._method.energy))
            starts[one.name] = A.to(one.A.dtype), Q.to(one.B.dtype)
            grown[one.name] = torch.cat([F, more], 1)
        optimizer.start({name: Q for name, (_, Q) in starts.items()})
        with torch.no_grad():
            for one in optimizer.factors:
                one.A.copy_(starts[one.name][0].mT)
        self._method.grown = grown

    def finish_task(self, batches: Iterable[Any] | None, loss: Loss | None) -> None:
        """See EBLoRA.end."""
        self._method.end()


def _directions(G: Tensor, F: Tensor, rank: int, energy: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return Aᵀ and Q to begin with, and what F lacks, from the top singular pairs of ``(I − F Fᵀ) Gᵀ``."""
    U, sigma, Vh = svd(away(away(G.mT, F), F))
    # what is left of a gradient of less than r directions points anywhere
    count = int((sigma > ROUNDING * torch.linalg.matrix_norm(G)).sum())
    U, sigma, Vh = U[:, :count], sigma[:count], Vh[:count]
    # rounding has left a part in F to the directions of small σ; unlike a QR this turns no column round
    for _ in range(2):
        U = polar_factor(away(U, F))
    A, Q = _filled(U[:, :rank], F, rank), _filled(Vh[:rank].mT, G.new_zeros(len(G), 0), rank)
    # the next directions that bring F to its share of G
    squares, total = sigma.double().square(), torch.linalg.matrix_norm(G.double()).square()
    lacking = squares.sum() - (1 - energy) * total
    missing = int((squares.cumsum(0) < lacking - 1e-12 * total).sum()) + 1 if lacking > 0 else 0
    # r always stay free
    return A, Q, U[:, : min(missing, max(0, G.shape[1] - rank - F.shape[1]))]


def _of_first_rank(X: Tensor) -> Tensor:
    """Return the first rank's X, since rounding may differ between ranks."""
    held = [X]
    if dist.is_initialized():
        dist.broadcast_object_list(held, 0, device=X.device)
    return held[0].to(X.device)


def _filled(X: Tensor, F: Tensor, count: int) -> Tensor:
    """Return the orthonormal columns of X and random ones, up to ``count``, that are orthogonal to them and to F."""
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(len(X), count - X.shape[1], generator=generator, dtype=X.dtype).to(X.device)
    # what one projection leaves of them by rounding, the second removes
    for _ in range(2):
        others = torch.linalg.qr(away(others, torch.cat([F, X], 1))).Q
    return torch.cat([X, others], 1)


def average_gradients(
    model: nn.Module, factors: list[Factors], batches: Iterable[Any], loss: Loss
) -> dict[str, Tensor]:
    """Return the mean gradient ``[d_out, d_in]`` of each frozen weight; see ``mean_over_batches``."""
    weights: dict[str, Any] = {one.name: one.layer.get_base_layer().weight for one in factors}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_()
        means = mean_over_batches(model, weights, batches, loss)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return {one.name: means[one.name].mT if one.transposed else means[one.name] for one in factors}
