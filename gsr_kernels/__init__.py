"""Methods against forgetting, in front of any torch optimizer: Gradient Spectrum Rescaling and its peers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsr_kernels.adapters.eblora import EBLoRA
    from gsr_kernels.adapters.factors import find_factors
    from gsr_kernels.adapters.gsr import AdapterGSR
    from gsr_kernels.adapters.merge_files import merge_files
    from gsr_kernels.adapters.merge_model import merge_and_unload
    from gsr_kernels.adapters.riemannian import RiemannianAdamW
    from gsr_kernels.adapters.terms import OLoRA, PSLoRA
    from gsr_kernels.basis import SpectralBasis
    from gsr_kernels.distributed.placements import shard_placement_fn
    from gsr_kernels.io.bases_file import load_bases, save_bases
    from gsr_kernels.linalg import randomized_svd
    from gsr_kernels.methods import (
        EWC,
        GSR,
        OSF,
        PSP,
        SR,
        AdaptiveOSF,
        Chain,
        DataAwareGSR,
        GSRFull,
        InSpan,
        LwFOwn,
        Method,
        ModelMethod,
        ScheduledOSF,
        TaskMethod,
        adaptive_shares,
        input_scales,
        layer_importance,
        scheduled_share,
    )
    from gsr_kernels.ops import rescale_gradient
    from gsr_kernels.optim import GSRAdamW, Handle, ModelHandle
    from gsr_kernels.optim.attach import attach

__version__ = "0.2.0"
__all__ = [
    "EWC", "GSR", "OSF", "PSP", "SR", "AdapterGSR", "AdaptiveOSF", "Chain", "DataAwareGSR", "EBLoRA", "GSRAdamW",
    "GSRFull", "Handle", "InSpan", "LwFOwn", "Method", "ModelHandle", "ModelMethod", "OLoRA", "PSLoRA",
    "RiemannianAdamW", "ScheduledOSF", "SpectralBasis", "TaskMethod", "adaptive_shares", "attach", "find_factors",
    "input_scales", "layer_importance", "load_bases", "merge_and_unload", "merge_files", "randomized_svd",
    "rescale_gradient", "save_bases", "scheduled_share", "shard_placement_fn",
]  # fmt: skip

# a name is imported at its first use from the first of these that has it, so that the command line's help needs no
# torch, and nothing but the adapters needs PEFT
_MODULES = (
    "optim", "methods", "basis", "ops", "io.bases_file", "linalg", "distributed.placements", "adapters.factors",
    "adapters.terms", "adapters.gsr", "adapters.eblora", "adapters.merge_files", "adapters.merge_model",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = (import_module(f"{__name__}.{module}") for module in _MODULES)
    globals()[name] = found = next(getattr(module, name) for module in modules if hasattr(module, name))
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
