"""Who steps the weights on GPUs: the machine decides before the first step."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gsr_kernels.backends.choice import Case
from gsr_kernels.backends.dispatch import VARIABLE, has_kernels, interpreted, kernels_installed, unsupported
from gsr_kernels.methods import GSR
from gsr_kernels.weight import Weight


def settle_backends(weights: Sequence[Weight], fused: bool) -> None:
    """Have every GPU check and time the ways to step its weights, once on a machine; see ``backends.choice``.

    Under torch.distributed all ranks must call. A step looks up what was decided and decides nothing. Weights that are
    sharded, or under other methods than GSR, are not stepped by such kernels.

    Args:
        weights: with their bases.
        fused: whether AdamW is done with them, see ``FusedStep``.
    """
    # what the interpreter takes says nothing of a GPU
    if os.environ.get(VARIABLE) or interpreted() or not kernels_installed():
        return
    devices = dict.fromkeys(weight.parameter.device for weight in weights)
    for device in filter(has_kernels, devices):
        from gsr_kernels.backends.triton.trial import settle

        cases = []
        for weight in weights:
            if not weight.whole or weight.parameter.device != device:
                continue
            # of several in a row GSR is one that such kernels step, and AdamW is not behind it
            for method in getattr(weight.method, "methods", (weight.method,)):
                if isinstance(method, GSR) and type(method).transform is GSR.transform:
                    alone = fused and method is weight.method and not weight.offloaded
                    form = weight.parameter.dtype, weight.basis.U.dtype, weight.basis.dims, method.out_of_span or "drop"
                    if not unsupported("step", *form):
                        cases.append(Case("update" if alone else "step", *form))
        settle(device, list(dict.fromkeys(cases)))
