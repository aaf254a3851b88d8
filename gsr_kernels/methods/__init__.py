"""The methods, one file each."""

from gsr_kernels.methods.base import Method
from gsr_kernels.methods.gsr import GSR
from gsr_kernels.methods.gsr_full import GSRFull
from gsr_kernels.methods.osf import OSF
from gsr_kernels.methods.psp import PSP

__all__ = ["GSR", "OSF", "PSP", "GSRFull", "Method"]
