"""Methods on the weights of a model."""

from gsr_kernels.methods.base import Method, TaskMethod
from gsr_kernels.methods.chain import Chain
from gsr_kernels.methods.ewc import EWC
from gsr_kernels.methods.gsr import GSR
from gsr_kernels.methods.gsr_data_aware import DataAwareGSR
from gsr_kernels.methods.gsr_full import GSRFull
from gsr_kernels.methods.lwf_own import LwFOwn
from gsr_kernels.methods.on_model import ModelMethod
from gsr_kernels.methods.osf import OSF, AdaptiveOSF, ScheduledOSF, adaptive_shares, scheduled_share
from gsr_kernels.methods.projections import PSP, InSpan
from gsr_kernels.methods.sr import SR
from gsr_kernels.methods.statistics import input_scales, layer_importance

__all__ = [
    "EWC", "GSR", "OSF", "PSP", "SR", "AdaptiveOSF", "Chain", "DataAwareGSR", "GSRFull", "InSpan", "LwFOwn",
    "Method", "ModelMethod", "ScheduledOSF", "TaskMethod", "adaptive_shares", "input_scales", "layer_importance",
    "scheduled_share",
]  # fmt: skip
