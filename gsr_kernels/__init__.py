"""Fine-tune a large model on new tasks without it forgetting the old ones: Gradient Spectrum Rescaling."""

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.placements import shard_placement_fn
from gsr_kernels.io.bases_file import load_bases, save_bases
from gsr_kernels.linalg import randomized_svd
from gsr_kernels.methods import GSR
from gsr_kernels.ops import rescale_gradient
from gsr_kernels.optim import GSRAdamW, Handle, attach

__version__ = "0.1.0.dev0"
__all__ = [
    "GSR",
    "GSRAdamW",
    "Handle",
    "SpectralBasis",
    "attach",
    "load_bases",
    "randomized_svd",
    "rescale_gradient",
    "save_bases",
    "shard_placement_fn",
]
