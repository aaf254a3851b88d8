"""Memory that a rank holds."""

from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """The most bytes that tensors made within held at once, and the elements of the largest tensor."""

    def __init__(self):
        super().__init__()
        self.most = self.largest = 0
        self._alive = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        before = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        for one in tree_leaves(made):
            if (
                isinstance(one, torch.Tensor)
                and one.device.type == "cpu"
                and one.untyped_storage()._cdata not in before
            ):
                storage = one.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.largest = max(self.largest, one.numel())
        self._alive = {key: found for key, found in self._alive.items() if not found[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return made


class Done:
    """A collective that has ended, and holds what it was given as long as it is held."""

    def __init__(self, *tensors, **settings):
        self._tensors = tensors

    def wait(self):
        pass


@contextmanager
def nothing_sent():
    """Sums and gathers that leave all as it is: gloo's own keep their tensors until a thread of its lets go of them."""
    of = dist.all_reduce, dist.all_gather_into_tensor
    dist.all_reduce = dist.all_gather_into_tensor = Done
    try:
        yield
    finally:
        dist.all_reduce, dist.all_gather_into_tensor = of
