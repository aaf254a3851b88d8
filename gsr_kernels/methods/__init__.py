"""The methods, one file each."""

from gsr_kernels.methods.base import Method
from gsr_kernels.methods.gsr import GSR

__all__ = ["GSR", "Method"]
