"""Methods on optimizers: attach, the handle, GSRAdamW."""

from gsr_kernels.optim.attach import attach
from gsr_kernels.optim.gsr_adamw import GSRAdamW
from gsr_kernels.optim.handle import Handle
from gsr_kernels.optim.model_handle import ModelHandle

__all__ = ["GSRAdamW", "Handle", "ModelHandle", "attach"]
