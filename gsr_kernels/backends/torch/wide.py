"""The dtypes of the stage operators."""

import torch
from torch import Tensor


def widened(*tensors: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """The dtype that tensors together have, and the tensors in it or in float32, whichever is wider."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return dtype, [tensor.to(wide) for tensor in tensors]
