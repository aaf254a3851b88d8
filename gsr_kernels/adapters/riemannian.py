"""AdamW on orthonormal factors: EBLoRA's step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer

from gsr_kernels.adapters.factors import Factors, by_shape
from gsr_kernels.backends.torch.products import full_precision
from gsr_kernels.checks import check_betas, check_kind
from gsr_kernels.linalg.polar import away, polar_factor, retract, tangent


class RiemannianAdamW(Optimizer):
    """AdamW for EBLoRA's adapters, ``ΔW = scaling · s Q A`` with ``QᵀQ = I``, ``A Aᵀ = I``, ``A F = 0``.

    The model's parameters are PEFT's: lora_A is A, lora_B is ``s Q``, so that its checkpoints and merges hold all. A
    step, for Q and for X = Aᵀ, with g their gradient (A's first freed of F):

        g ← tangent(X, g)   AdamW's step D from g   D ← tangent(X, scale · D)   X ← polar(X + D)

    s takes a plain AdamW step, and the weight decay; that of Q and A has no tangent part. F is EBLoRA's, and Q too,
    once ``handle.start_task`` has begun a task; to resume load the state.

    Args:
        factors: of one adapter, see ``find_factors``.
        lr, betas, eps, weight_decay: AdamW's.
        scale: of the steps of Q and A; None is √(4096 / r), that of the public code, for a model of that width.

    Raises:
        TypeError: factors are not float32 or float64: 16 bits are not orthonormal to 1e-3.
        ValueError: a setting is out of range; in the first step, where lora_B is zero, and neither a task has begun nor
            a state been loaded.
    """

    def __init__(
        self,
        factors: Sequence[Factors],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        scale: float | None = None,
    ) -> None:
        check_kind(Real | Tensor, "a number", lr=lr, eps=eps, weight_decay=weight_decay)
        betas = check_betas(betas)
        check_kind(Iterable, "those of find_factors()", factors=factors)
        if not lr >= 0 or not eps > 0 or not weight_decay >= 0:
            raise ValueError(
                f"lr and weight_decay must be at least 0 and eps above 0, got lr={lr}, weight_decay={weight_decay}, "
                f"eps={eps}"
            )
        factors = list(factors)
        for one in factors:
            if one.A.dtype not in (torch.float32, torch.float64):
                found = f"{one.name} has factors in {one.A.dtype}"
                raise TypeError(f"{found}, EBLoRA wants float32: PEFT's default, autocast_adapter_dtype=True")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "scale": scale}
        super().__init__([factor for one in factors for factor in (one.A, one.B)], defaults)
        self.factors = factors
        self._groups = [[row[0] for row in group] for group in by_shape([one] for one in factors)]
        self.protect({})

    def protect(self, F: Mapping[str, Tensor]) -> None:
        """Keep A away from F ``[d_in, p]``, orthonormal columns by the name of the module, from now on.

        Raises ValueError where F names a module that the adapter does not act on.
        """
        if unknown := sorted(set(F) - {one.name for one in self.factors}):
            reason = f"F protects inputs of {unknown[0]}, which is no module of the adapter"
            raise ValueError(f"{reason}: name those of find_factors(model) alone")
        self._protected = []
        for group in self._groups:
            like = group[0].A.detach()
            rows = [F[one.name].mT.to(like) if one.name in F else like[:0] for one in group]
            # zero columns where a module has fewer
            self._protected.append(pad_sequence(rows, batch_first=True).mT)

    def start(self, Q: Mapping[str, Tensor] | None = None) -> None:
        """Begin with zero moments and Q ``[d_out, r]`` by the name of the module; None: lora_B is a multiple of it.

        Raises ValueError where Q is not given and lora_B is zero.
        """
        for one in self.factors:
            B = one.B.detach()
            if Q is None and not B.any():
                reason = f"lora_B is zero at {one.name} and says no Q"
                raise ValueError(f"{reason}: load the optimizer's state, or call handle.start_task()")
            direction = polar_factor(B) if Q is None else Q[one.name]
            size = (direction * B).sum() / one.rank
            self.state[one.A] = _moments(one.A)
            self.state[one.B] = {**_moments(one.B), **_moments(size, "size_"), "Q": direction.clone(), "size": size}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise ValueError: other parameters, as a head's, want an optimizer of their own."""
        if self.param_groups:
            raise ValueError("RiemannianAdamW steps one adapter: give other parameters an optimizer of their own")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step every module whose two factors have gradients."""
        if not self.state:
            self.start()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, F in zip(self._groups, self._protected):
            present = [i for i, one in enumerate(group) if one.A.grad is not None and one.B.grad is not None]
            if present:
                with full_precision(F.device):
                    self._step([group[i] for i in present], F[present])
        return loss

    def _step(self, group: list[Factors], F: Tensor) -> None:
        settings = self.param_groups[0]
        scale = settings["scale"] if settings["scale"] is not None else (4096 / group[0].rank) ** 0.5
        X, Q = torch.stack([one.A.mT for one in group]), self._stacked(group, "Q")
        size = self._stacked(group, "size")[:, None, None]
        grad_X = torch.stack([one.A.grad.mT for one in group])  # type: ignore[union-attr]
        grad_B = torch.stack([one.B.grad for one in group])  # type: ignore[misc]

        of_X = self._adam([one.A for one in group], "", tangent(X, away(grad_X, F)).mT).mT
        of_Q = self._adam([one.B for one in group], "", tangent(Q, size * grad_B))
        of_size = self._adam([one.B for one in group], "size_", (Q * grad_B).sum((-2, -1)))
        # what rounding has let into F leaves again
        X = retract(away(X, F), tangent(X, away(scale * of_X, F)))
        Q = retract(Q, tangent(Q, scale * of_Q))
        size = size.flatten() * (1 - settings["lr"] * settings["weight_decay"]) + of_size
        for i, one in enumerate(group):
            one.A.copy_(X[i].mT)
            one.B.copy_(size[i] * Q[i])
            self.state[one.B]["Q"].copy_(Q[i])
            self.state[one.B]["size"].copy_(size[i])

    def _stacked(self, group: list[Factors], key: str) -> Tensor:
        return torch.stack([self.state[one.B][key] for one in group])

    def _adam(self, parameters: list[Tensor], prefix: str, gradient: Tensor) -> Tensor:
        """Return AdamW's step for gradients ``[n, ..]`` of the parameters, without decay; their moments move on."""
        settings = self.param_groups[0]
        (first, second), shape = settings["betas"], (-1, *[1] * (gradient.ndim - 1))
        states = [self.state[parameter] for parameter in parameters]
        for state, one in zip(states, gradient):
            state[f"{prefix}step"] += 1
            state[f"{prefix}exp_avg"].lerp_(one, 1 - first)
            state[f"{prefix}exp_avg_sq"].mul_(second).addcmul_(one, one, value=1 - second)
        steps = torch.stack([state[f"{prefix}step"] for state in states]).view(shape).to(gradient)
        mean = torch.stack([state[f"{prefix}exp_avg"] for state in states]) / (1 - first**steps)
        square = torch.stack([state[f"{prefix}exp_avg_sq"] for state in states]) / (1 - second**steps)
        return -settings["lr"] * mean / (square.sqrt() + settings["eps"])


def _moments(like: Tensor, prefix: str = "") -> dict[str, Tensor]:
    zeros = {f"{prefix}{name}": torch.zeros_like(like, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
    return {f"{prefix}step": torch.zeros((), device=like.device), **zeros}
