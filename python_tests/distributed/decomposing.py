"""Weights decomposed by single ranks: what the ranks do in the test beside this file."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gsr_kernels
from gsr_kernels import SpectralBasis
from gsr_kernels.basis import fingerprint
from gsr_kernels.distributed import decompose
from python_tests.distributed.decisions import refused
from python_tests.distributed.matrices import Wire, attached, distribute, make_model
from python_tests.distributed.memory import Held


def placed(experts, sides, placements):
    model = nn.Module()
    mesh = init_device_mesh("cpu", sides)
    model.experts = nn.Parameter(distribute_tensor(experts, mesh, placements))
    return model


class Shapes:
    """Those of what this rank decomposes within."""

    def __enter__(self):
        self.seen, self._of = [], SpectralBasis.of

        def of(weight, *arguments, **settings):
            self.seen.append(tuple(weight.shape))
            return self._of(weight, *arguments, **settings)

        SpectralBasis.of = of
        return self

    def __exit__(self, *raised):
        SpectralBasis.of = self._of


def experts(count, sides, placements):
    """Count of decomposed matrices, errors of the factors, if the replicas have the same bits, count of messages."""
    torch.manual_seed(0)
    whole = torch.randn(count, 7, 5, dtype=torch.float64)
    model = placed(whole, sides, placements)
    with Wire() as wire, Shapes() as shapes:
        _, handle = attached(model)
    basis, block = handle.bases["experts"], handle.weights[0].scheme.layout.block()
    truth = SpectralBasis.of(whole)
    mine = slice(*block[0])
    errors = [(basis.S - truth.S[mine]).abs(), (basis.U * basis.S.unsqueeze(-2) @ basis.Vh - whole[mine]).abs()]
    bits = [None] * dist.get_world_size()
    dist.all_gather_object(bits, (block, basis.U, basis.S, basis.Vh))
    same = all(all(map(torch.equal, of, (basis.U, basis.S, basis.Vh))) for there, *of in bits if there == block)
    return {
        "decomposed": sum(shape[0] for shape in shapes.seen),
        "error": max([one.max().item() for one in errors if one.numel()], default=0.0),
        "same bits": same and basis.fingerprint == fingerprint(whole),
        "messages": sum(name in ("send", "recv_") for name, _ in wire.seen),
    }


def several(cases):
    return [experts(*case) for case in cases]


def broken_expert():
    """Error of attach() where the last rank's expert holds NaN."""
    whole = torch.randn(4, 6, 5)
    whole[3, 0, 0] = float("nan")
    model = placed(whole, (dist.get_world_size(),), [Shard(0)])
    return refused(gsr_kernels.attach, model, torch.optim.SGD(model.parameters(), 0.1), rho=0.5)


def memory(layouts):
    """The most that the first rank held beside its parts while it gathered a weight, and beside its basis then."""
    of = {name: getattr(decompose, name) for name in ("gather", "scatter")}
    found = {}

    def counted(name):
        def call(*arguments):
            with Held() as held:
                result = of[name](*arguments)
            most[name].append(held.most / (4 * 256 * 256))
            return result

        return call

    for sides, placements in layouts:
        most = {name: [] for name in of}
        model = make_model({"layer": torch.randn(256, 256)})
        distribute(model, init_device_mesh("cpu", sides), placements)
        for name in of:
            setattr(decompose, name, counted(name))
        try:
            attached(model)
        finally:
            for name, function in of.items():
                setattr(decompose, name, function)
        found[sides, str(placements)] = most
    return found
