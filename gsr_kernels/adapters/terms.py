"""O-LoRA and PS-LoRA: terms of the loss that hold a new adapter beside those of earlier tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gsr_kernels.adapters.factors import Factors, adapter_names, by_shape, same_modules, stacked
from gsr_kernels.adapters.stability import Terms, auto_alpha, check_alpha, check_factor, sign_shares, stability_loss
from gsr_kernels.backends.torch.stages import widened
from gsr_kernels.checks import Backend, check_choice, check_fit, check_number
from gsr_kernels.methods.on_model import BoundMethod, ModelMethod


@dataclass(frozen=True)
class Term(ModelMethod):
    """Base of the terms. Earlier adapters' factors are constants, copied when the term is attached.

    Its gradient is added once a step, and a fused optimizer, which unscales by itself, gets it scaled. Several terms on
    one optimizer add up.

    Args:
        lam: the strength, above 0.
        new: the adapter that is trained; by default the last one that was added.
        earlier: those that it is held beside; by default all others.

    Raises ValueError for a lam that is not above 0; in ``attach`` TypeError and ValueError for adapters that are not
    supported.
    """

    # begins the names of scalars
    label: ClassVar[str]
    # the factors of a module that the term depends on
    acts_on: ClassVar[tuple[str, ...]]

    lam: float
    new: str | None = None
    earlier: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_number("lam", self.lam, 0, above=True)

    def bind(self, model: nn.Module) -> BoundTerm:
        """Return the term of a PEFT model, or one with PEFT's adapters injected."""
        return BoundTerm(self, model)

    @abstractmethod
    def constants(self, earlier: list[list[Factors]]) -> tuple[Tensor, ...]:
        """Return what the term keeps of the earlier factors of modules of one shape, a list a module."""

    @abstractmethod
    def losses(self, new: list[Factors], *constants: Tensor) -> Tensor:
        """Return the loss of each module of one shape, without lam, in float32 or float64."""

    def measures(self, bound: BoundTerm) -> dict[str, float]:
        """Return further scalars, by name."""
        return {}


class BoundTerm(BoundMethod):
    def __init__(self, term: Term, model: nn.Module) -> None:
        names = adapter_names(model)
        new = names[-1] if term.new is None else term.new
        earlier = [name for name in names if name != new] if term.earlier is None else list(term.earlier)
        if new in earlier:
            raise ValueError(f"earlier names {new!r}, which is the new adapter")
        if not earlier:
            raise ValueError(f"earlier is empty: beside {new!r} there is no adapter, the first task needs no term")
        self.name = type(term).__name__
        self._term = term
        # of each group, a list a module: the new factors first
        self._groups: list[list[list[Factors]]] = by_shape(same_modules(model, [new, *earlier]))
        self.parameters = [getattr(row[0], each) for group in self._groups for row in group for each in term.acts_on]
        with torch.no_grad():
            self._constants = [term.constants([row[1:] for row in group]) for group in self._groups]

    def modules(self) -> Iterator[tuple[list[Factors], tuple[Tensor, ...]]]:
        """Yield the new factors of modules of one shape, and their constants, which follow the model to its device."""
        for i, group in enumerate(self._groups):
            device = group[0][0].A.device
            self._constants[i] = tuple(constant.to(device) for constant in self._constants[i])
            yield [row[0] for row in group], self._constants[i]

    def loss(self) -> Tensor:
        """Return the term, lam included, as a scalar with gradients for the new adapter's factors."""
        losses = [self._term.losses(new, *constants).sum() for new, constants in self.modules()]
        return self._term.lam * torch.stack([loss.to(losses[0].device) for loss in losses]).sum()

    def act(self, optimizer: Optimizer) -> None:
        present = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        with torch.enable_grad():
            terms = torch.autograd.grad(self.loss(), [parameter for parameter, _ in present])
        scale = getattr(optimizer, "grad_scale", None)
        for (_, gradient), term in zip(present, terms):
            gradient.add_(term if scale is None else term * scale)

    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        return {f"{self._term.label}/loss": self.loss().item(), **self._term.measures(self)}


@dataclass(frozen=True)
class OLoRA(Term):
    """``lam Σ_modules Σ |old_A Aᵀ|`` ("Orthogonal Subspace Learning for Language Model Continual Learning").

        handle = attach(model, optimizer, OLoRA(lam=0.5))

    A is PEFT's lora_A, as in the public code: the paper's A is the other factor. Scalings do not enter.

    Args:
        lam: the strength, above 0. The public code's is 0.5; it tells to stay below 5.
        new, earlier: names of the adapter that is trained, and of those before it; by default the last, and all others.

    Raises as ``Term``.
    """

    label = "o_lora"
    acts_on = ("A",)

    lam: float = 0.5

    def constants(self, earlier: list[list[Factors]]) -> tuple[Tensor, ...]:
        """Return all rows of the earlier A ``[n, R, d_in]``."""
        return (torch.stack([torch.cat([one.A for one in row]) for row in earlier]),)

    def losses(self, new: list[Factors], *constants: Tensor) -> Tensor:
        return overlap_loss(torch.stack([one.A for one in new]), *constants)


@dataclass(frozen=True)
class PSLoRA(Term):
    """``lam Σ_modules stability_loss`` ("Stability Matters: Combating Parameter Shifts in Low-Rank Adaptation").

        handle = attach(model, optimizer, PSLoRA(lam=0.01))

    A new adapter is kept small, and of one sign with those of earlier tasks; see ``stability_loss``. Earlier factors
    are kept side by side: ``T r`` elements a row and column of every weight.

    Args:
        lam: the strength, above 0. The paper's is 0.1 or 0.001 for T5-large, 0.01 or 0.001 for LLaMA-2-7B.
        new, earlier: names of the adapter that is trained, and of those before it; by default the last, and all others.
        alpha: a number above 0, or "auto", for every module ``auto_alpha`` of its earlier factors.
        terms: "both", "magnitude" or "sign".
        backend: see ``stability_loss``.

    Raises as ``Term``, and ValueError where alpha or terms is out of range.
    """

    label = "ps_lora"
    acts_on = ("B", "A")

    _: KW_ONLY
    alpha: float | Literal["auto"] = "auto"
    terms: Terms = "both"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("terms", self.terms, Terms)
        if self.alpha != "auto":
            check_alpha(self.alpha, torch.Size(), torch.device("cpu"))

    def constants(self, earlier: list[list[Factors]]) -> tuple[Tensor, ...]:
        """Return old_B, old_A and alpha of ``stability_loss``."""
        columns = [stacked(column) for column in zip(*earlier)]
        old_B, old_A = torch.cat([B for B, _ in columns], -1), torch.cat([A for _, A in columns], -2)
        if self.alpha == "auto":
            return old_B, old_A, auto_alpha(old_B, old_A)
        return old_B, old_A, check_alpha(self.alpha, old_B.shape[:-2], old_B.device)

    def losses(self, new: list[Factors], *constants: Tensor) -> Tensor:
        old_B, old_A, alpha = constants
        return stability_loss(*stacked(new), old_B, old_A, alpha, self.terms, self.backend)

    def measures(self, bound: BoundTerm) -> dict[str, float]:
        """Return, over all modules, the shares of entries with the same and the opposite sign as before."""
        same = opposite = entries = 0.0
        for new, (old_B, old_A, _) in bound.modules():
            B, A = stacked(new)
            size = B.shape[-2] * A.shape[-1]
            shares = sign_shares(B, A, old_B, old_A, self.backend)
            same += size * shares[0].sum().item()
            opposite += size * shares[1].sum().item()
            entries += size * len(B)
        return {"ps_lora/same_sign": same / entries, "ps_lora/opposite_sign": opposite / entries}


def overlap_loss(A: Tensor, old_A: Tensor) -> Tensor:
    """Return ``Σ |old_A Aᵀ|`` of each module ``[..]``, of ``A [.., r, d]`` and ``old_A [.., R, d]``, a constant.

    Two products whose results have R × r and r × d entries, in float32 or better. Raises TypeError for
    other than float tensors and for sharded ones, ValueError for shapes that do not fit.
    """
    check_factor("A", A)
    check_factor("old_A", old_A)
    check_fit(A=(A, A.shape), old_A=(old_A, (*A.shape[:-2], old_A.shape[-2], A.shape[-1])))
    with torch.autocast(A.device.type, enabled=False):
        _, (A, old_A) = widened(A, old_A.detach())
        return (old_A @ A.mT).abs().sum((-2, -1))
