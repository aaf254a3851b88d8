"""Methods on adapters, by name: how many adapters, how they are merged, what acts on their steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gsr_kernels.adapters.factors import adapter_names
from gsr_kernels.adapters.gsr import AdapterGSR
from gsr_kernels.adapters.merging import How
from gsr_kernels.adapters.terms import OLoRA, PSLoRA, Term
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.methods.on_model import ModelMethod

# rows of a task whose mean gradient EBLoRA begins with
GRADIENT_ROWS = 256


@dataclass(frozen=True)
class AdapterMethod:
    """Method on adapters.

    Args:
        own: every task has an adapter of its own, and the last one is trained beside the others; else one for all.
        how: adapters are scored as one, see ``merge``.
        term, lam: hold the new adapter beside earlier ones, and how firmly unless the reader says so.
        rescaled: GSR acts on the adapter, in its own spectrum.
        balanced: EBLoRA; its adapter is merged when the task ends.
    """

    own: bool = True
    how: How = "sum"
    term: type[Term] | None = None
    lam: float = 0.0
    rescaled: bool = False
    balanced: bool = False

    def described(self, settings: RunSettings) -> str:
        """Return its settings in words."""
        parts = [f"one a task, merged by {self.how}" if self.own else "one for all tasks"]
        if self.term is not None:
            parts.append(f"{self.term.__name__}(lam={settings.adapter_lam or self.lam:g})")
        if self.rescaled:
            parts.append(f"AdapterGSR(rho={settings.rho:g}, spectrum='adapter')")
        if self.balanced:
            parts.append(f"EBLoRA(energy=0.99), gradient of {GRADIENT_ROWS} rows, steps scaled by √(width / rank)")
        return ", ".join(parts)

    def term_of(self, model: nn.Module, settings: RunSettings) -> ModelMethod | None:
        """Return what acts on the steps of the adapter that was added last; the first task needs no term."""
        if self.rescaled:
            return AdapterGSR(settings.rho)
        if self.term is None or len(adapter_names(model)) < 2:
            return None
        return self.term(settings.adapter_lam or self.lam)


# strengths: O-LoRA's public code's, and the PS-LoRA paper's for a long sequence
ADAPTER_METHODS = {
    "seqlora": AdapterMethod(own=False),
    "inclora": AdapterMethod(),
    "o-lora": AdapterMethod(term=OLoRA, lam=0.5),
    "ps-lora": AdapterMethod(how="magnitude", term=PSLoRA, lam=0.1),
    "eblora": AdapterMethod(balanced=True),
    "gsr-lora": AdapterMethod(own=False, rescaled=True),
}
